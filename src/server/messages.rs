//! Finds where the messages of a stream begin and end in the bytes of its body. gRPC frames them as
//! a flag, the length in four bytes, and that many bytes.

const HEAD: usize = 5;

/// The message that is arriving.
#[derive(Debug, Default)]
pub(super) struct Messages {
    head: [u8; HEAD],
    begun: usize,
    /// Bytes of the message that are missing, once the head is complete.
    missing: usize,
}

impl Messages {
    /// Takes more bytes of the body. Returns whether a message ended in them.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            if self.begun < HEAD {
                let (now, later) = bytes.split_at(bytes.len().min(HEAD - self.begun));
                self.head[self.begun..][..now.len()].copy_from_slice(now);
                (self.begun, bytes) = (self.begun + now.len(), later);
                if self.begun < HEAD {
                    break;
                }
                let [_, length @ ..] = self.head;
                self.missing = u32::from_be_bytes(length) as usize;
            }
            let now = bytes.len().min(self.missing);
            (self.missing, bytes) = (self.missing - now, &bytes[now..]);
            if self.missing == 0 {
                (self.begun, ended) = (0, true);
            }
        }
        ended
    }

    /// Whether a message has begun and is not complete.
    pub(super) fn is_within_one(&self) -> bool {
        self.begun > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(length: usize) -> Vec<u8> {
        [&[0][..], &(length as u32).to_be_bytes(), &vec![7; length]].concat()
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let lengths = [0, 1, 5, 0, 300, 4, 0];
        let all: Vec<u8> = lengths.into_iter().flat_map(framed).collect();
        for size in 1..all.len() {
            let (mut messages, mut ends) = (Messages::default(), 0);
            for bytes in all.chunks(size) {
                ends += usize::from(messages.take(bytes));
            }
            assert!(!messages.is_within_one(), "{size}");
            assert!(ends >= lengths.len().min(all.len().div_ceil(size)) / 3, "{size}: {ends}");
        }
        let mut messages = Messages::default();
        let ends = all.iter().filter(|byte| messages.take(&[**byte])).count();
        assert_eq!(ends, lengths.len());
    }

    #[test]
    fn a_message_has_begun_with_its_first_byte() {
        let mut messages = Messages::default();
        assert!(!messages.is_within_one());
        for byte in &framed(2)[..6] {
            assert!(!messages.take(&[*byte]) && messages.is_within_one());
        }
        assert!(messages.take(&[7]) && !messages.is_within_one());
        // The end of one message and the beginning of the next.
        let two = [framed(2), framed(2)].concat();
        assert!(messages.take(&two[..9]) && messages.is_within_one());
    }
}
