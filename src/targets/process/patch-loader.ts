import { createHash } from 'node:crypto';
import { hex, linkAddress } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import { PF_X, PT_LOAD, SHN_UNDEF, STT_FUNC } from '../../elf/constants.js';
import type { CallbackKind } from '../../engine/callbacks.js';
import type { Patch } from '../../patch/content.js';
import { layoutPatch } from '../../patch/layout.js';
import { type ExternalSymbol, type LinkedImage, linkPatch, type SymbolSource } from '../../patch/link.js';
import type { PatchFunction, PatchObject } from '../../patch/manifest.js';
import { partOf } from '../../patch/part.js';
import { badBarrierError, whyNoBarrier } from '../barrier-check.js';
import { CALLBACK_RECORD_BYTES } from '../callback-record.js';
import { expectCompatibleStates, linkStates } from '../patch-states.js';
import type { LoadedModule } from './modules.js';
import { fileOf, type LoadedPart, statesOf } from './patch-objects.js';
import { findFreeRange } from './placement.js';
import { canSetGsBase, type Mapping, readExecutablePath } from './proc.js';
import type { ProcessSession } from './process-session.js';
import { planBarrier, planRedirect, planRestore, TRAMPOLINE_BYTES, toHex } from './redirect-plan.js';
import type { MemoryRange, RegisteredBarrier, RegisteredFunction, Registry } from './registry.js';
import { SymbolResolver } from './symbol-resolver.js';
import { type PartToMap, PROT_EXEC, PROT_READ, PROT_WRITE, roundUp } from './target-memory.js';
import { versionStack } from './trampolines.js';

/** Code around a function that is searched for padding. */
const MARGIN_BYTES = 32;

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/**
 * The mapped file that a patch is for, checked against its identity; undefined when there is none of its name. Throws
 * `wrong-build-id` for another build of it, `loaded-twice` for one that is there more than once (dlmopen).
 */
export function findPatchedModule(
  session: ProcessSession,
  object: Pick<PatchObject, 'name' | 'identity'>,
): LoadedModule | undefined {
  const byName = session.modules.filter(
    (m) => m.name === object.name || (m.path.startsWith('/') && m.elf.soname === object.name),
  );
  // A renamed executable is still the one: its identity decides.
  const candidates = byName.length > 0 ? byName : session.modules.filter((m) => m.name !== '[vdso]');
  const [found, second] = candidates.filter((m) => hasIdentity(m, object));
  if (second !== undefined) throw loadedTwiceError(session.pid, object.name);
  if (found !== undefined) return found;
  const [named] = byName;
  if (named === undefined) return undefined;
  const wanted = object.identity.kind === 'buildId' ? object.identity.hex : object.identity.sha256;
  const has = object.identity.kind === 'buildId' ? (named.elf.buildId ?? 'none') : textHash(named);
  throw new LivegraftError(
    'wrong-build-id',
    `process ${session.pid}: ${named.path} is another build than the patch was made for (build-id ${has}, patch ${wanted})`,
    {
      remedy: 'build the patch for this very binary',
      details: { pid: session.pid, object: object.name, has, wanted },
    },
  );
}

/** A patch reaches one copy of a file in a process. */
export function loadedTwiceError(pid: number, object: string): LivegraftError {
  return new LivegraftError('loaded-twice', `process ${pid} has loaded ${object} more than once (dlmopen)`, {
    remedy: 'a patch reaches one copy of a file in a process: close the others first',
    details: { pid, object },
  });
}

export function notLoadedError(session: ProcessSession, { name }: PatchObject): LivegraftError {
  return new LivegraftError(
    'object-not-loaded',
    `process ${session.pid} has not loaded ${name}, which the patch is for`,
    {
      remedy: `check with: grep ${name} /proc/${session.pid}/maps; if it is to be loaded later, repeat with --late`,
      details: { pid: session.pid, object: name },
    },
  );
}

export function hasIdentity(module: LoadedModule, { identity }: Pick<PatchObject, 'identity'>): boolean {
  return identity.kind === 'buildId'
    ? module.elf.buildId === identity.hex
    : textHash(module) === identity.sha256;
}

function textHash(module: LoadedModule): string {
  const hash = createHash('sha256');
  for (const segment of module.elf.segments) {
    if (segment.type !== PT_LOAD || (segment.flags & PF_X) === 0) continue;
    hash.update(module.elf.bytes.subarray(segment.offset, segment.offset + segment.fileSizeBytes));
  }
  return hash.digest('hex');
}

/** Checks that memory holds the code that the patch was made for, apart from what livegraft itself wrote there. */
export function expectOldCode(session: ProcessSession, object: PatchObject, module: LoadedModule): void {
  for (const fn of object.functions) {
    for (const range of [fn.old, ...fn.parts]) {
      const address = Number(range.address) + module.bias;
      const live = session.memory.readExactly(address, range.sizeBytes);
      if (session.registry !== undefined) undoEntries(session.registry, live, address);
      if (sha256(live) === range.sha256) continue;
      const file =
        module.elf.bytesAt(linkAddress(Number(range.address)), range.sizeBytes) ?? new Uint8Array();
      const at = live.findIndex((byte, i) => byte !== file[i]);
      throw new LivegraftError(
        'code-differs',
        at < 0
          ? `function ${range.name} of ${module.path} is not the code that the patch was made for`
          : `process ${session.pid}: function ${range.name} differs in memory from ${module.path}, first at offset ${at} (${hex(address + at)})`,
        {
          remedy:
            'another tool has changed the code (a debugger, a probe, another patcher): remove that first',
          details: { function: range.name, offset: at, address: hex(address) },
        },
      );
    }
  }
}

/** Puts the original bytes of redirected entries back into a copy of the code: a short function's reach beyond its end. */
function undoEntries(registry: Registry, code: Buffer, address: number): void {
  for (const patch of registry.patches.toReversed()) {
    for (const { redirect } of patch.functions) {
      for (const { site, below } of redirect.hop === undefined ? [redirect] : [redirect, redirect.hop]) {
        const original = Buffer.from(below, 'hex');
        const from = Math.max(site.address, address);
        const to = Math.min(site.address + site.sizeBytes, address + code.length);
        if (from < to) original.copy(code, from - address, from - site.address, to - site.address);
      }
    }
  }
}

export interface LoadOptions {
  readonly barrier: string | undefined;
  /** The older patches go with the transition that brings this one. */
  readonly replaces: boolean;
}

/**
 * Maps memory near an object and puts the relocated part of the patch that is for it and its trampolines there. Nothing
 * runs it yet. Everything that can be refused is refused before the memory is mapped; a failure afterwards unmaps it.
 */
export function loadPart(
  session: ProcessSession,
  whole: Patch,
  object: PatchObject,
  module: LoadedModule,
  registry: Registry,
  { barrier: barrierName, replaces }: LoadOptions,
): LoadedPart {
  const patch = partOf(whole, object);
  const enabled = registry.patches.map((each) => ({ name: each.name, states: statesOf(each) }));
  expectCompatibleStates(`process ${session.pid}`, patch, enabled, replaces);
  expectOldCode(session, object, module);
  const restored = replaces ? functionsToRestore(registry, object, module.bias) : [];
  const callbacks = Object.entries(object.callbacks ?? {}) as [CallbackKind, string][];
  const trampolines =
    object.functions.length * (replaces ? 2 : 1) +
    restored.length +
    (barrierName === undefined ? 0 : 1) +
    callbacks.length +
    1;
  session.tracer.attend();
  const layout = layoutPatch(
    patch,
    trampolines * TRAMPOLINE_BYTES,
    callbacks.length === 0 ? 0 : CALLBACK_RECORD_BYTES,
  );
  const shadowTable = usesShadowVariables(patch) ? session.expectShadowTable() : undefined;
  const base = findFreeRange(session.mappings, layout.sizeBytes, { start: module.start, end: module.end });
  const source = symbolSource(session, object, module, shadowTable);
  const image = linkPatch(patch, layout, base, source, session.arch.redirector);
  session.tracer.attend();
  let used = 0;
  const nextTrampoline = () => base + layout.redirectOffset + used++ * TRAMPOLINE_BYTES;
  /** Shut: zero. */
  const gate = nextTrampoline();
  const place = (trampoline: number, bytes: Uint8Array) => image.bytes.set(bytes, trampoline - base);
  const functions = object.functions.map((fn): RegisteredFunction => {
    const plan = (below: Registry) => {
      const trampoline = nextTrampoline();
      const planned = planFunction(session, below, module, object, fn, image, trampoline, gate);
      place(trampoline, planned.trampolineBytes);
      return planned.registered;
    };
    const registered = plan(registry);
    expectEntry(session, registered);
    return replaces
      ? { ...registered, afterReplace: plan({ ...registry, patches: [] }).redirect }
      : registered;
  });
  for (const earlier of restored) {
    const trampoline = nextTrampoline();
    const { old } = earlier;
    const around = codeAround(module, earlier.name, old);
    const planned = planRestore(session.arch.redirector, {
      name: earlier.name,
      old,
      ...around,
      trampoline,
      gate,
      slots: registry.slots,
      earlier,
    });
    place(trampoline, planned.trampolineBytes);
    const { object: of, name, oldParts } = earlier;
    const { copy, redirect } = planned;
    functions.push({ object: of, name, old, oldParts, new: copy, newParts: [], redirect, restores: true });
  }
  let barrier: RegisteredBarrier | undefined;
  if (barrierName !== undefined) {
    const trampoline = nextTrampoline();
    const isUsed = (address: number) => refersTo(patch, source, address);
    const request = { object: object.name, name: barrierName, trampoline, functions, isUsed };
    const planned = planBarrierOf(session, module, registry, request);
    place(trampoline, planned.trampolineBytes);
    barrier = planned.barrier;
  }

  const record = base + layout.recordOffset;
  const calls = callbacks.map(([kind, name]) => {
    const at = nextTrampoline();
    const { bytes, returningAt } = session.arch.redirector.encodeBorrowedCall(
      at,
      functionIn(image, name).address,
      record,
    );
    place(at, bytes);
    return { kind, at, returningAt: at + returningAt };
  });
  const states = linkStates(patch, layout, image, enabled);

  const part = (
    { offset, sizeBytes }: { offset: number; sizeBytes: number },
    protection: number,
  ): PartToMap[] =>
    sizeBytes === 0 ? [] : [{ address: base + offset, sizeBytes: roundUp(sizeBytes), protection }];
  const parts = [
    ...part(layout.text, PROT_READ | PROT_EXEC),
    ...part(layout.readOnly, PROT_READ),
    ...part(layout.readWrite, PROT_READ | PROT_WRITE),
  ];
  const target = session.targetMemory();
  target.map(patch.manifest.name, parts);
  try {
    for (const { address, sizeBytes } of parts) {
      const offset = address - base;
      session.memory.write(address, image.bytes.subarray(offset, offset + sizeBytes));
    }
  } catch (error) {
    target.unmap(parts);
    throw error;
  }
  const [first] = module.mappings as [Mapping];
  return {
    object: object.name,
    part: {
      state: 'loaded',
      module: {
        address: module.start,
        sizeBytes: module.end - module.start,
        file: fileOf(first),
        mayLeave: module.path !== readExecutablePath(session.pid),
      },
      image: { address: base, sizeBytes: layout.sizeBytes },
      code: { address: base, sizeBytes: layout.codeSizeBytes },
      text: { address: base, sizeBytes: layout.text.sizeBytes },
      ehFrame: layout.ehFrame && {
        address: base + layout.ehFrame.offset,
        sizeBytes: layout.ehFrame.sizeBytes,
      },
      gate,
      symbols: image.functions,
      ...(calls.length === 0 ? {} : { callbacks: { object: object.name, record, calls } }),
      ...(states.length === 0 ? {} : { states }),
    },
    functions,
    barrier,
  };
}

/** Whether the code of a patch refers to an address, as its links are resolved. */
function refersTo(patch: Patch, source: SymbolSource, address: number): boolean {
  const used = new Set(patch.sections.flatMap((s) => s.relocations.map((r) => r.symbolIndex)));
  return patch.symbols.some(
    (symbol, index) =>
      symbol.kind === 'external' &&
      !symbol.isThreadLocal &&
      used.has(index) &&
      source.resolve(symbol) === address,
  );
}

interface BarrierRequest {
  readonly object: string;
  readonly name: string;
  readonly trampoline: number;
  readonly functions: readonly RegisteredFunction[];
  readonly isUsed: (address: number) => boolean;
}

/** Refuses what can be seen to hold code that leaves when it runs; the rest is what was declared. */
function planBarrierOf(
  session: ProcessSession,
  module: LoadedModule,
  registry: Registry,
  { object, name, trampoline, functions, isUsed }: BarrierRequest,
) {
  const old = findBarrier(module, name);
  const stack = versionStack(registry.patches);
  const leaving = functions.flatMap(({ name, old, oldParts }) => {
    const below = stack.newest(old.address);
    const ranges = [old, ...oldParts, ...(below === undefined ? [] : [below.new, ...below.newParts])];
    return ranges.map(({ address, sizeBytes }) => ({
      name,
      address,
      code: session.memory.readExactly(address, sizeBytes),
    }));
  });
  const why =
    whyNoBarrier(session.arch.decoder, {
      name,
      entry: old.address,
      leaving,
      isPatched: (address) => stack.newest(address) !== undefined,
      isUsed,
    }) ??
    (registry.slots.kind === 'gsBase' && !canSetGsBase(session.pid)
      ? 'threads can not set their GS base here (Linux before 5.9), where earlier patches have states'
      : undefined);
  if (why !== undefined) throw badBarrierError(name, why, 'thread');
  return planBarrier(session.arch.redirector, {
    object,
    name,
    old,
    ...codeAround(module, name, old),
    trampoline,
    slots: registry.slots,
  });
}

function findBarrier(module: LoadedModule, name: string): MemoryRange {
  const { symbols, dynamicSymbols } = module.elf;
  const named = [...symbols, ...dynamicSymbols].filter(
    (s) => s.name === name && s.type === STT_FUNC && s.sectionIndex !== SHN_UNDEF && s.sizeBytes > 0,
  );
  const addresses = new Set(named.map((s) => s.value));
  const [symbol] = named;
  if (symbol === undefined || addresses.size > 1) {
    const found = symbol === undefined ? 'no function' : `${addresses.size} functions`;
    throw new LivegraftError('bad-barrier', `${module.path} has ${found} named ${name}`, {
      remedy: 'give the name of one function of the patched file, as its symbol table has it (nm)',
      details: { barrier: name },
    });
  }
  return { address: symbol.value + module.bias, sizeBytes: symbol.sizeBytes };
}

/** A cumulative patch can bring back only what lies in its own objects. */
export function expectReplaceable(registry: Registry, objects: readonly PatchObject[]): void {
  const names = objects.map(({ name }) => name);
  const other = registry.patches.flatMap((patch) => patch.functions).find((fn) => !names.includes(fn.object));
  if (other === undefined) return;
  throw new LivegraftError(
    'replace-other-object',
    `the patch is for ${names.join(', ')} and can't replace one that changes ${other.object}`,
    { remedy: 'revert that one first, or apply without replacing', details: { object: other.object } },
  );
}

/** What only older patches change, and this one brings back. One that two of them change is led back once, from the newer. */
function functionsToRestore(
  registry: Registry,
  object: PatchObject,
  bias: number,
): readonly RegisteredFunction[] {
  const stack = versionStack(registry.patches);
  const newest = registry.patches
    .flatMap((patch) => patch.functions)
    .filter((fn) => fn.object === object.name && stack.newest(fn.old.address) === fn);
  const own = new Set(object.functions.map((fn) => Number(fn.old.address) + bias));
  return newest.filter((fn) => !own.has(fn.old.address));
}

/** The file's code of a function and some bytes around it. */
export function codeAround(
  module: LoadedModule,
  name: string,
  old: MemoryRange,
): { readonly code: Uint8Array; readonly functionStart: number } {
  const link = old.address - module.bias;
  const start = linkAddress(Math.max(0, link - MARGIN_BYTES));
  const functionStart = link - start;
  const code = module.elf.bytesAt(start, functionStart + old.sizeBytes + MARGIN_BYTES);
  if (code === undefined) {
    throw new LivegraftError('patch-malformed', `${name} at ${hex(link)} lies outside of ${module.path}`);
  }
  return { code, functionStart };
}

/** The entry must hold what the registry says of it. */
function expectEntry(session: ProcessSession, { name, redirect }: RegisteredFunction): void {
  const held = toHex(session.memory.readExactly(redirect.site.address, redirect.site.sizeBytes));
  if (held === redirect.below) return;
  throw new LivegraftError(
    'code-differs',
    `function ${name}: its entry holds ${held} instead of ${redirect.below}`,
    {
      remedy: 'another tool has changed the code: remove that first',
      details: { function: name },
    },
  );
}

function functionIn(image: LinkedImage, name: string): MemoryRange {
  const found = image.functions.find((f) => f.name === name);
  if (found === undefined) {
    throw new LivegraftError(
      'patch-malformed',
      `the patch says that ${name} is its code, but does not hold it`,
    );
  }
  return { address: found.address, sizeBytes: found.sizeBytes };
}

function planFunction(
  session: ProcessSession,
  registry: Registry,
  module: LoadedModule,
  object: PatchObject,
  fn: PatchFunction,
  image: LinkedImage,
  trampoline: number,
  gate: number,
): { registered: RegisteredFunction; trampolineBytes: Uint8Array } {
  const find = (name: string) => functionIn(image, name);
  const link = Number(fn.old.address);
  const old = { address: link + module.bias, sizeBytes: fn.old.sizeBytes };
  const newRange = find(fn.newSymbol);
  const { redirect, trampolineBytes } = planRedirect(session.arch.redirector, {
    name: fn.name,
    old,
    newAddress: newRange.address,
    ...codeAround(module, fn.name, old),
    trampoline,
    gate,
    slots: registry.slots,
    earlier: versionStack(registry.patches).newest(old.address),
  });
  return {
    trampolineBytes,
    registered: {
      object: object.name,
      name: fn.name,
      old,
      oldParts: fn.parts.map((p) => ({ address: Number(p.address) + module.bias, sizeBytes: p.sizeBytes })),
      new: newRange,
      newParts: fn.newParts.map(find),
      redirect,
    },
  };
}

/** The name under which patch code knows the page of shadow variables (include/livegraft.h). */
const SHADOW_TABLE = 'livegraft_shadow_table';

function usesShadowVariables(patch: Patch): boolean {
  return patch.symbols.some((symbol) => symbol.kind === 'external' && symbol.name === SHADOW_TABLE);
}

function symbolSource(
  session: ProcessSession,
  object: PatchObject,
  module: LoadedModule,
  shadowTable: number | undefined,
): SymbolSource {
  const others = session.modules.filter((m) => m.name !== '[vdso]');
  const resolver = new SymbolResolver(session.memory, module, others);
  const known = new Map(object.symbols.map((s) => [`${s.name},${s.sympos}`, Number(s.address)]));
  const lookUp = (symbol: ExternalSymbol) => known.get(`${symbol.name},${symbol.sympos}`);
  return {
    resolve(symbol) {
      if (symbol.name === SHADOW_TABLE) return shadowTable;
      if (symbol.object === '*') return resolver.resolve(symbol.name);
      const link = lookUp(symbol);
      return link === undefined ? undefined : link + module.bias;
    },
    threadOffset(symbol) {
      const value = lookUp(symbol);
      return value === undefined ? undefined : resolver.threadOffset(value);
    },
    moduleOffset: lookUp,
    moduleId: () => resolver.tlsModuleId(),
  };
}
