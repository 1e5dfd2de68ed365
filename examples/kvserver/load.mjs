// Load on the key-value server: several connections, requests one after another on each, every answer checked.
// Runs as a process of its own, so that the tool under test can't slow it down by sharing a thread.
//   node load.mjs PORT CONNECTIONS      ends on SIGTERM (or after 120 s) with one JSON line of counts
import { connect } from 'node:net';

const [port, connections] = process.argv.slice(2).map(Number);
const counts = { sent: 0, answered: 0, failed: 0, longestMs: 0 };
let stopping = false;

function client(id) {
  const socket = connect(port, '127.0.0.1');
  socket.setNoDelay(true);
  let expected = '';
  let sentAt = 0;
  let step = 0;
  let buffered = '';
  const next = () => {
    if (stopping) {
      socket.end();
      return;
    }
    const key = `load-${id}-${step % 16}`;
    const value = `v${step}`;
    const isSet = step % 2 === 0;
    expected = isSet ? 'OK' : `v${step - 1}`;
    // A GET asks for what the SET before it stored.
    const line = isSet ? `SET ${key} ${value}` : `GET load-${id}-${(step - 1) % 16}`;
    step++;
    counts.sent++;
    sentAt = performance.now();
    socket.write(`${line}\n`);
  };
  socket.on('connect', next);
  socket.on('data', (data) => {
    buffered += data.toString('latin1');
    const end = buffered.indexOf('\n');
    if (end < 0) return;
    const answer = buffered.slice(0, end);
    buffered = buffered.slice(end + 1);
    counts.answered++;
    counts.longestMs = Math.max(counts.longestMs, performance.now() - sentAt);
    if (answer !== expected) counts.failed++;
    next();
  });
  socket.on('error', () => {
    counts.failed++;
  });
  socket.on('close', () => {
    if (!stopping) counts.failed++;
  });
}

for (let i = 0; i < connections; i++) client(i);

function stop() {
  stopping = true;
  setTimeout(() => {
    process.stdout.write(`${JSON.stringify(counts)}\n`);
    process.exit(0);
  }, 200);
}
process.on('SIGTERM', stop);
setTimeout(stop, 120_000).unref();
process.stdout.write('ready\n');
