'use strict';
// A parked interpreter (native/parked.c): it starts before there is anything to run, tells that it is ready, waits for
// the arguments and the environment of a program, and then is what `node SCRIPT [argument ...]` would be.
//
// Nothing of ours stays where a program would see it: neither descriptors, nor this file among its modules, nor a frame
// in a stack trace.  What counts from the interpreter's start (`performance.now`, `process.uptime`) counts from here.

const { closeSync, readSync, writeSync } = require('fs');
const Module = require('module');

const TEXTS = 3;
const SYNC = 4;
const READY = 'r'.charCodeAt(0);

function tellReady() {
  const { user, system } = process.cpuUsage();
  const ready = Buffer.alloc(24);
  ready.writeUInt32LE(READY, 0);
  ready.writeInt32LE(process.pid, 4);
  ready.writeBigUInt64LE(BigInt(user) * 1000n, 8);
  ready.writeBigUInt64LE(BigInt(system) * 1000n, 16);
  writeSync(SYNC, ready);
}

function readTexts() {
  const pieces = [];
  const piece = Buffer.alloc(65536);
  for (let length; (length = readSync(TEXTS, piece)) > 0; ) pieces.push(Buffer.from(piece.subarray(0, length)));
  return Buffer.concat(pieces).toString().split('\0').slice(0, -1);
}

function become(texts) {
  const count = Number(texts[0]);
  process.argv.splice(1, process.argv.length, ...texts.slice(1, count + 1));
  const wanted = new Map(
    texts.slice(count + 1).map((variable) => {
      const at = variable.indexOf('=');
      return [variable.slice(0, at), variable.slice(at + 1)];
    }),
  );
  for (const name of Object.keys(process.env)) if (!wanted.has(name)) delete process.env[name];
  for (const [name, value] of wanted) if (process.env[name] !== value) process.env[name] = value;
}

// What programs mostly use is loaded, and compiled by having been used, before it counts.
for (const name of ['assert', 'crypto', 'events', 'os', 'path', 'readline', 'stream', 'url', 'util']) require(name);
new Module(__filename)._compile('exports.text = `${[1, 2].map((n) => n * n)}`;', __filename);
process.stdout.write('');
process.stderr.write('');
tellReady();
const texts = readTexts();
if (texts.length === 0) process.reallyExit(1);
tellReady();
closeSync(TEXTS);
closeSync(SYNC);
become(texts);
delete require.cache[__filename];
setImmediate(Module.runMain, process.argv[1]);
