/**
 * Loaded into livegraft with `node --import`: counts everything that it does to a target (ptrace requests, writes to
 * its memory) and, at step LIVEGRAFT_FAULT_AT, dies or fails. LIVEGRAFT_FAULT: `kill-before` and `kill-after` die by
 * SIGKILL right before or behind the step, `throw` throws in its place. At step LIVEGRAFT_TURN_AT it is sent the SIGQUIT of
 * an operator who turns the transition around. The number of steps goes to LIVEGRAFT_FAULT_COUNT.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import koffi from 'koffi';

const at = Number(process.env.LIVEGRAFT_FAULT_AT ?? 0);
const kind = process.env.LIVEGRAFT_FAULT;
const turnAt = Number(process.env.LIVEGRAFT_TURN_AT ?? 0);
let steps = 0;

function step(call) {
  steps += 1;
  if (steps === turnAt) process.kill(process.pid, 'SIGQUIT');
  if (steps !== at) return call();
  if (kind === 'throw') throw new Error(`fault injected at step ${at}`);
  if (kind === 'kill-before') process.kill(process.pid, 'SIGKILL');
  const result = call();
  if (kind === 'kill-after') process.kill(process.pid, 'SIGKILL');
  return result;
}

const load = koffi.load;
koffi.load = (...names) => {
  const library = load(...names);
  return {
    func(name, ...types) {
      const native = library.func(name, ...types);
      // waitpid only looks: a step between two looks is the same as one behind the first.
      return name === 'ptrace' ? (...args) => step(() => native(...args)) : native;
    },
  };
};

const memories = new Set();
const { openSync, writeSync } = fs;
fs.openSync = (path, ...rest) => {
  const fd = openSync(path, ...rest);
  if (/^\/proc\/\d+\/mem$/.test(String(path))) memories.add(fd);
  return fd;
};
fs.writeSync = (fd, ...rest) =>
  memories.has(fd) ? step(() => writeSync(fd, ...rest)) : writeSync(fd, ...rest);
syncBuiltinESMExports();

const counted = process.env.LIVEGRAFT_FAULT_COUNT;
if (counted !== undefined) process.on('exit', () => fs.writeFileSync(counted, String(steps)));
