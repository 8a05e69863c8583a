// Sends many small messages on a stream of BulkUpsert, without waiting for any answer, and makes other calls on the same
// connection meanwhile. Ends with 0 if every message was answered, in order.
//
// usage: node small_chunks.js HOST:PORT MESSAGES

"use strict";

const grpc = require("@grpc/grpc-js");

const SERVICE = "/featurestore.v1.FeatureStoreService/";
// A GetFeaturesRequest, encoded: entity_ids (field 2) = ["a"].
const READ = Buffer.from([0x12, 1, 0x61]);

function varint(number) {
  const bytes = [];
  for (; number >= 0x80; number = Math.floor(number / 0x80)) bytes.push((number % 0x80) | 0x80);
  return Buffer.from([...bytes, number]);
}

/** A BulkUpsertRequest without records, encoded: sequence (field 2). */
function message(sequence) {
  return Buffer.concat([Buffer.from([2 << 3]), varint(sequence)]);
}

/** Of a BulkUpsertResponse, encoded: sequence (field 1), which is its first field. */
function sequenceOf(answer) {
  let number = 0;
  for (let at = 1, factor = 1; at < answer.length; at++, factor *= 0x80) {
    number += (answer[at] & 0x7f) * factor;
    if (answer[at] < 0x80) break;
  }
  return number;
}

async function main(target, messages) {
  const client = new grpc.Client(target, grpc.credentials.createInsecure());
  const same = (bytes) => bytes;
  const read = () =>
    new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + 20_000 };
      const done = (error) => (error ? reject(error) : resolve());
      client.makeUnaryRequest(SERVICE + "GetFeatures", same, same, READ, options, done);
    });

  const call = client.makeBidiStreamRequest(SERVICE + "BulkUpsert", same, same);
  let answered = 0;
  const ended = new Promise((resolve, reject) => {
    call.on("data", (answer) => {
      answered += 1;
      if (sequenceOf(answer) !== answered) reject(new Error(`answer ${answered} is of ${sequenceOf(answer)}`));
    });
    call.on("error", reject);
    call.on("end", resolve);
  });
  for (let sequence = 1; sequence <= messages; sequence++) call.write(message(sequence));
  for (let reads = 0; reads < 10; reads++) await read();
  call.end();
  await ended;
  client.close();
  if (answered !== messages) throw new Error(`${answered} of ${messages} messages were answered`);
  console.log(`${answered} messages were answered`);
}

main(process.argv[2], Number(process.argv[3])).catch((error) => {
  console.error(error);
  process.exit(1);
});
