//! Conversions between float32 and float64 that keep every bit. Those of the machine turn a
//! signalling NaN into a quiet one, but a client must get back what it sent.

const F32_QUIET: u32 = 1 << 22;
const F32_MANTISSA: u32 = (1 << 23) - 1;
const F64_EXPONENT: u64 = 0x7ff << 52;
const F64_MANTISSA: u64 = (1 << 52) - 1;
/// The difference in length of the mantissas, in bits.
const LONGER: u32 = 29;

/// The same number, or the same NaN, as a float64.
pub fn widen(number: f32) -> f64 {
    if !number.is_nan() {
        return f64::from(number);
    }
    let bits = number.to_bits();
    let (sign, mantissa) = (u64::from(bits >> 31) << 63, u64::from(bits & F32_MANTISSA) << LONGER);
    f64::from_bits(sign | F64_EXPONENT | mantissa)
}

/// The nearest float32; infinite if the number is too large. For a NaN from `widen` it is the
/// original.
pub fn narrow(number: f64) -> f32 {
    if !number.is_nan() {
        return number as f32;
    }
    let bits = number.to_bits();
    let (sign, mantissa) = (((bits >> 63) as u32) << 31, ((bits & F64_MANTISSA) >> LONGER) as u32);
    // A NaN whose upper bits are all zero would become an infinity.
    let mantissa = if mantissa == 0 { F32_QUIET } else { mantissa };
    f32::from_bits(sign | f32::INFINITY.to_bits() | mantissa)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn survives(bits: u32) {
        assert_eq!(narrow(widen(f32::from_bits(bits))).to_bits(), bits, "{bits:#x}");
    }

    #[test]
    fn the_edges_survive() {
        let quiet = f32::INFINITY.to_bits() | F32_QUIET;
        let signalling = f32::INFINITY.to_bits() | 1;
        for bits in [0, 1, 1 << 31, f32::MAX.to_bits(), f32::INFINITY.to_bits(), quiet, quiet | 5, signalling] {
            survives(bits);
            survives(bits | 1 << 31);
        }
        assert!(narrow(f64::from_bits(F64_EXPONENT | 1)).is_nan());
        assert_eq!(narrow(1e300), f32::INFINITY);
        assert_eq!(narrow(0.1), 0.1);
    }

    proptest! {
        #[test]
        fn every_float32_survives(bits in any::<u32>()) {
            survives(bits);
        }

        #[test]
        fn a_nan_stays_a_nan(mantissa in 1..=F64_MANTISSA, negative in any::<bool>()) {
            let number = f64::from_bits(F64_EXPONENT | mantissa | u64::from(negative) << 63);
            prop_assert!(narrow(number).is_nan());
            prop_assert_eq!(narrow(number).is_sign_negative(), negative);
        }
    }
}
