import { readlinkSync } from 'node:fs';
import { DEBUG_STATE, DOORBELL_BYTES, DOORBELL_FIELDS } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import { SHN_UNDEF } from '../../elf/constants.js';
import type { ElfSymbol } from '../../elf/elf-file.js';
import type { ProcessMemory } from './memory.js';
import type { LoadedModule } from './modules.js';
import { codeAround } from './patch-loader.js';
import { isWithin } from './patch-objects.js';
import { findFreeRange, PAGE_BYTES } from './placement.js';
import { memoryFolder, readStatus, readThreadStatus } from './proc.js';
import type { ProcessSession } from './process-session.js';
import { toHex } from './redirect-plan.js';
import type { RegisteredDoorbell } from './registry.js';
import { findLanding } from './remote-call.js';
import { type PlannedCall, SeccompPolicy } from './seccomp.js';
import { FUTEX_WAIT_PRIVATE, SYS_futex, SYS_getpid, SYS_kill } from './syscalls.js';
import { PROT_EXEC, PROT_READ, PROT_WRITE } from './target-memory.js';
import { PATIENT_TIMEOUT_MS } from './tracer.js';

/**
 * Where a process tells livegraft that it has loaded or unloaded something, and waits: the function that dynamic linkers
 * call for debuggers (`r_brk`, link.h), redirected. A breakpoint there, in hardware or software, would kill the process once
 * livegraft has been killed; watching system calls would cost at each of them. A task that rings asks the kernel whether the
 * watcher lives, so that it never waits for a dead one. Nobody has to trace the process meanwhile.
 */

/** `struct r_debug` (link.h). */
const R_BRK_OFFSET = 16;
const R_STATE_OFFSET = 24;

/** Maps and fills in the doorbell; the entry is as it was. Throws `no-doorbell` where there can be none. Threads must be seized. */
export function mapDoorbell(session: ProcessSession): RegisteredDoorbell {
  expectCallsAllowed(session);
  const { debug, linker } = findDebugStructure(session);
  const brk = Number(session.memory.readExactly(debug + R_BRK_OFFSET, 8).readBigUInt64LE(0));
  if (!isWithin({ address: linker.start, sizeBytes: linker.end - linker.start }, brk))
    throw noDoorbell(session, 'the dynamic linker names no function for debuggers');
  const symbol = [...linker.elf.dynamicSymbols, ...linker.elf.symbols].find(
    (s) => s.value + linker.bias === brk && s.sizeBytes > 0,
  );
  const name = symbol?.name ?? 'r_brk';
  const old = { address: brk, sizeBytes: symbol?.sizeBytes ?? 1 };
  const { code, functionStart } = codeAround(linker, name, old);
  const { redirector } = session.arch;
  const site = redirector.chooseSite(code, functionStart, old.sizeBytes, old.address);
  if ('refused' in site || site.hopOffset !== undefined)
    throw noDoorbell(session, `${name} can't be redirected`);

  session.refreshMappings();
  const anchor = { start: linker.start, end: linker.end };
  const address = findFreeRange(session.mappings, 2 * PAGE_BYTES, anchor);
  const data = address + PAGE_BYTES;
  const bell = redirector.encodeDoorbell({ at: address, data, debugState: debug + R_STATE_OFFSET });
  const belowEntry = address + bell.length;
  const copy = redirector.displace(code, functionStart, site, old.address, belowEntry);
  if ('refused' in copy) throw noDoorbell(session, copy.refused);
  const at = old.address + site.offset;
  const jump = toHex(redirector.encodeJump(at, address, 5));
  const original = functionStart + site.offset;
  session.targetMemory().map('doorbell', [
    { address, sizeBytes: PAGE_BYTES, protection: PROT_READ | PROT_EXEC },
    { address: data, sizeBytes: PAGE_BYTES, protection: PROT_READ | PROT_WRITE },
  ]);
  session.memory.write(address, Buffer.concat([bell, copy.bytes]));
  const bytes = Buffer.alloc(DOORBELL_BYTES);
  bytes.writeUInt32LE(
    Number(readStatus(session.pid)?.get('NSpid')?.split(/\s+/).at(-1)),
    DOORBELL_FIELDS.owner,
  );
  bytes.writeBigUInt64LE(1_000_000n, DOORBELL_FIELDS.timeout + 8);
  session.memory.write(data, bytes);
  return {
    name,
    old,
    image: { address, sizeBytes: 2 * PAGE_BYTES },
    data,
    redirect: {
      site: { address: at, sizeBytes: 5 },
      below: toHex(code.subarray(original, original + 5)),
      choosing: jump,
      direct: jump,
      hop: undefined,
      trampoline: {
        address,
        sizeBytes: bell.length + copy.bytes.length,
        stateReadAt: 0,
        belowEntry,
        displaced: copy.map.map((pair) => ({
          copy: belowEntry + pair.copy,
          original: old.address + pair.original,
        })),
      },
    },
  };
}

/** A doorbell in a process's memory, from the side of whoever answers. */
export class Doorbell {
  readonly #memory: ProcessMemory;
  readonly #data: number;

  constructor(memory: ProcessMemory, { data }: RegisteredDoorbell) {
    this.#memory = memory;
    this.#data = data;
  }

  /** Tasks wait for this process from now on. */
  arm(): void {
    const rings = this.#read(DOORBELL_FIELDS.rings);
    this.#write(DOORBELL_FIELDS.answered, rings);
    this.#write(DOORBELL_FIELDS.watcherHere, process.pid);
    this.#write(DOORBELL_FIELDS.watcher, hasSamePids(this.#memory.pid) ? process.pid : 0);
    this.#write(DOORBELL_FIELDS.armed, 1);
  }

  disarm(): void {
    this.#write(DOORBELL_FIELDS.armed, 0);
  }

  /** Whether a living process answers. It may be this one. */
  get isWatched(): boolean {
    return this.isArmed && readStatus(this.watcher) !== undefined;
  }

  get isArmed(): boolean {
    return this.#read(DOORBELL_FIELDS.armed) !== 0;
  }

  get watcher(): number {
    return this.#read(DOORBELL_FIELDS.watcherHere);
  }

  /** Whoever rings is about to unmap what it unloads; its destructors have run. */
  get isLeaving(): boolean {
    return this.#read(DOORBELL_FIELDS.state) === DEBUG_STATE.delete;
  }

  /** What a task that waits for an answer waits on. */
  get answerAddress(): number {
    return this.#data + DOORBELL_FIELDS.answered;
  }

  /** How often it has rung. */
  get rings(): number {
    return this.#read(DOORBELL_FIELDS.rings);
  }

  get answered(): number {
    return this.#read(DOORBELL_FIELDS.answered);
  }

  /** Lets the task go on. */
  answer(rings: number): void {
    this.#write(DOORBELL_FIELDS.answered, rings);
  }

  #read(field: number): number {
    return this.#memory.readExactly(this.#data + field, 4).readUInt32LE(0);
  }

  #write(field: number, value: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    this.#memory.write(this.#data + field, bytes);
  }
}

/** glibc keeps the structure as `_r_debug`; musl a pointer to it as `_dl_debug_addr`. */
function findDebugStructure(session: ProcessSession): { debug: number; linker: LoadedModule } {
  for (const module of session.modules) {
    if (!/^(ld[.-]|ld-|libc\.)/.test(module.name)) continue;
    const find = (name: string) => module.elf.dynamicSymbols.find((s) => isDefined(s) && s.name === name);
    const direct = find('_r_debug');
    if (direct !== undefined) return { debug: direct.value + module.bias, linker: module };
    const pointer = find('_dl_debug_addr');
    if (pointer === undefined) continue;
    const bytes = session.memory.readExactly(pointer.value + module.bias, 8);
    return { debug: Number(bytes.readBigUInt64LE(0)), linker: module };
  }
  throw noDoorbell(session, 'it has no dynamic linker that tells debuggers');
}

function isDefined({ sectionIndex }: ElfSymbol): boolean {
  return sectionIndex !== SHN_UNDEF;
}

/** What the doorbell calls. */
const CALLS: readonly PlannedCall[] = [
  { number: SYS_getpid },
  { number: SYS_kill, args: [1, 0] },
  { number: SYS_futex, args: [0, FUTEX_WAIT_PRIVATE] },
];

/** Any thread may load something: a seccomp filter of one that forbids what the doorbell calls could kill the process. */
function expectCallsAllowed(session: ProcessSession): void {
  const { tracer, pid } = session;
  const { syscall } = findLanding(session.memory, session.mappings);
  for (const tracee of [...tracer.tracees.values()]) {
    if (readThreadStatus(pid, tracee.tid)?.get('Seccomp') === '0') continue;
    tracer.interrupt(tracee);
    if (tracer.collect(tracee, PATIENT_TIMEOUT_MS) !== 'stopped') continue;
    try {
      const policy = SeccompPolicy.of(tracee);
      for (const call of CALLS) policy.expectAllowed(call, syscall);
    } catch (cause) {
      if (cause instanceof LivegraftError)
        throw noDoorbell(session, 'a seccomp filter forbids what it calls', cause);
      throw cause;
    } finally {
      tracer.resume(tracee);
    }
  }
}

function noDoorbell(session: ProcessSession, why: string, cause?: unknown): LivegraftError {
  return new LivegraftError(
    'no-doorbell',
    `process ${session.pid}: libraries can't be watched as they come: ${why}`,
    {
      remedy: 'apply the patch again when the library is loaded',
      details: { pid: session.pid, why },
      cause,
    },
  );
}

/** Whether the process knows this one by the same number. */
function hasSamePids(pid: number): boolean {
  try {
    return readlinkSync('/proc/self/ns/pid') === readlinkSync(`${memoryFolder(pid)}/ns/pid`);
  } catch {
    return false;
  }
}
