import { findLanding, RemoteCaller } from './remote-call.js';
import { ProcessMemory } from './memory.js';
import { readMappings } from './proc.js';
import { Tracer, sleepSync } from './tracer.js';
const pid = Number(process.argv[2]);
const memory = new ProcessMemory(pid);
const tracer = new Tracer();
const t = tracer.seize(pid, pid)!;
const landing = findLanding(memory, readMappings(pid)!);
console.log(landing);
for (let i = 0; i < 5; i++) {
  tracer.interrupt(t);
  console.log(tracer.collect(t, 1000), t.stop);
  const t0 = performance.now();
  const rc = new RemoteCaller(tracer, t, memory, landing, [39]);
  const t1 = performance.now();
  console.log('getpid', rc.call(39), rc.call(39));
  const t2 = performance.now();
  if (process.argv[3] === 'die' && i == 2) { rc.call(39); process.kill(process.pid, 'SIGKILL'); }
  rc.restore();
  tracer.resume(t);
  console.log(t1 - t0, t2 - t1);
  sleepSync(300);
}
tracer.detachAll(1000);
