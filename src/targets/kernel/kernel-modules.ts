import { decodeText } from '../../base/byte-reader.js';
import { LivegraftError } from '../../base/errors.js';
import { SYMBOL_BYTES } from '../../elf/symbols.js';
import { KernelSymbolTable } from '../../kernel-image/symbol-table.js';
import type { GuestMemory, MemorySource } from './guest-memory.js';
import type { GuestSlices } from './guest-slices.js';
import { type KernelLayout, StructReader } from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

/** A loaded module, as the kernel's memory describes it. */
export interface KernelModule {
  readonly name: string;
  /** Of its `struct module`. */
  readonly structAddress: number;
  readonly text: { readonly address: number; readonly sizeBytes: number };
  readonly symbols: KernelSymbolTable;
  readonly orc: {
    readonly entries: Uint8Array;
    readonly ips: { readonly bytes: Uint8Array; readonly address: number };
  };
}

export const MAX_MODULES = 10_000;
const MODULE_STATE_UNFORMED = 3;

/** The head of the list of modules. */
export function findModuleList(kernel: KernelAddresses): number | undefined {
  return kernel.find('modules');
}

/** Whether a module in the list has its memory: what is being loaded is listed before, what was unloaded until behind. */
export function isFormed(state: number): boolean {
  return state !== MODULE_STATE_UNFORMED;
}

/** Where a `struct module` says what is needed of it. */
export function modulePlaces(layout: KernelLayout) {
  const at = (...paths: string[]) => layout.expect('module', ...paths);
  // 6.4 replaced the two layouts by an array, of which the first is the text (ac3b43283923).
  const base = at('core_layout.base', 'mem');
  const memoryBase = layout.find('module_memory', 'base');
  const textSize = layout.find('module', 'core_layout.text_size') ?? layout.expect('module_memory', 'size');
  return {
    ...{ list: at('list'), name: at('name'), state: at('state'), kallsyms: at('kallsyms') },
    textAt: memoryBase === undefined ? base : { offset: base.offset + memoryBase.offset },
    sizeAt: memoryBase === undefined ? textSize : { ...textSize, offset: base.offset + textSize.offset },
  };
}

/** How often to begin anew when modules come and go meanwhile. */
const MAX_TRIES = 20;

/**
 * Reads the list `modules`: those that are loaded, with symbols and ORC tables, since their files may be anywhere. The
 * guest runs in between; the list is read again at the end, and everything when it has changed. `tables` is what the
 * large parts are read through, which stay as they are as long as the module is there.
 */
export async function readModules(
  memory: GuestMemory,
  tables: MemorySource,
  slices: GuestSlices,
  kernel: KernelAddresses,
  layout: KernelLayout,
): Promise<readonly KernelModule[]> {
  // The kernel's types are read when they are first asked for, which takes 130 ms: not in a stop.
  modulePlaces(layout);
  const list = async () => {
    await slices.stop();
    const found = await listModules(memory, kernel, layout);
    slices.breathe();
    return found;
  };
  for (let attempt = 1; ; attempt++) {
    try {
      const before = await list();
      const modules: KernelModule[] = [];
      for (const address of before) modules.push(await readModule(memory, tables, slices, layout, address));
      if (`${before}` === `${await list()}`) return modules;
    } catch (error) {
      const isGone = error instanceof LivegraftError && /^guest-(memory|inconsistent)$/.test(error.code);
      if (!isGone || attempt >= MAX_TRIES) throw error;
    }
    slices.resume();
    if (attempt >= MAX_TRIES) {
      throw new LivegraftError('guest-inconsistent', "the guest's modules come and go all the time", {
        remedy: 'repeat the command when it has loaded what it needs',
      });
    }
  }
}

/** In a stopped guest: each `struct module` whose memory is there. */
export async function listModules(
  memory: GuestMemory,
  kernel: KernelAddresses,
  layout: KernelLayout,
): Promise<readonly number[]> {
  const head = findModuleList(kernel);
  if (head === undefined) return [];
  const read = new StructReader(memory);
  const place = modulePlaces(layout);
  const found: number[] = [];
  for (const address of await read.list(head, place.list, MAX_MODULES))
    if (isFormed(await read.number(address, place.state))) found.push(address);
  return found;
}

/** Reads one `struct module`, whose memory is there. */
export async function readModule(
  memory: GuestMemory,
  tables: MemorySource,
  slices: Pick<GuestSlices, 'stop' | 'breathe'>,
  layout: KernelLayout,
  address: number,
): Promise<KernelModule> {
  const read = new StructReader(memory);
  const place = modulePlaces(layout);
  await slices.stop();
  const found = {
    name: await read.text(address, place.name),
    structAddress: address,
    text: {
      address: await read.address(address, place.textAt),
      sizeBytes: await read.number(address, place.sizeAt),
    },
  };
  const symbols = await findSymbols(read, await read.address(address, place.kallsyms), layout);
  const orc = await findOrc(read, address, layout);
  slices.breathe();
  return {
    ...found,
    symbols: symbols === undefined ? NO_SYMBOLS : await readSymbols(tables, symbols),
    orc: await readOrc(tables, orc),
  };
}

const NO_SYMBOLS = new KernelSymbolTable([], '', new Float64Array());

interface OrcPlace {
  readonly count: number;
  readonly entries: number;
  readonly ips: number;
}

async function findOrc(read: StructReader, module: number, layout: KernelLayout): Promise<OrcPlace> {
  const at = (path: string) => layout.expect('module', `arch.${path}`);
  if (layout.find('module', 'arch.orc_unwind_ip') === undefined)
    return { count: 0, entries: 0, ips: await read.address(module, layout.expect('module', 'kallsyms')) };
  return {
    count: await read.number(module, at('num_orcs')),
    entries: await read.address(module, at('orc_unwind')),
    ips: await read.address(module, at('orc_unwind_ip')),
  };
}

async function readOrc(
  tables: MemorySource,
  { count, entries, ips }: OrcPlace,
): Promise<KernelModule['orc']> {
  return {
    entries: count === 0 ? new Uint8Array() : await tables.readMemory(entries, 6 * count),
    ips: { address: ips, bytes: count === 0 ? new Uint8Array() : await tables.readMemory(ips, 4 * count) },
  };
}

interface SymbolPlace {
  readonly count: number;
  readonly table: number;
  readonly letters: number;
  readonly strings: number;
}

/** `struct mod_kallsyms`: an ELF symbol table; the letters are kept beside it. */
async function findSymbols(
  read: StructReader,
  kallsyms: number,
  layout: KernelLayout,
): Promise<SymbolPlace | undefined> {
  if (kallsyms === 0) return undefined;
  const at = (path: string) => layout.expect('mod_kallsyms', path);
  return {
    count: await read.number(kallsyms, at('num_symtab')),
    table: await read.address(kallsyms, at('symtab')),
    letters: await read.address(kallsyms, at('typetab')),
    strings: await read.address(kallsyms, at('strtab')),
  };
}

async function readSymbols(
  tables: MemorySource,
  { count, ...place }: SymbolPlace,
): Promise<KernelSymbolTable> {
  const table = await tables.readMemory(place.table, count * SYMBOL_BYTES);
  const letters = await tables.readMemory(place.letters, count);
  const view = new DataView(table.buffer, table.byteOffset, table.length);
  const nameAt = (i: number) => view.getUint32(i * SYMBOL_BYTES, true);
  const last = Math.max(0, ...Array.from({ length: count }, (_, i) => nameAt(i)));
  const text = await readUpTo(tables, place.strings, last + MAX_NAME_BYTES);
  const symbols = Array.from({ length: count }, (_, i) => ({
    name: decodeText(text.subarray(nameAt(i), text.indexOf(0, nameAt(i)))),
    letter: String.fromCharCode(letters[i] as number),
    address: Number(view.getBigInt64(i * SYMBOL_BYTES + 8, true)),
  }))
    .filter((symbol) => symbol.address < 0 && symbol.name !== '')
    .sort((a, b) => a.address - b.address);
  return new KernelSymbolTable(
    symbols.map((symbol) => symbol.name),
    symbols.map((symbol) => symbol.letter).join(''),
    Float64Array.from(symbols, (symbol) => symbol.address),
  );
}

/** The last name may end before the memory does. */
async function readUpTo(tables: MemorySource, address: number, mostBytes: number): Promise<Uint8Array> {
  const text = new Uint8Array(mostBytes);
  for (let at = 0; at < mostBytes; ) {
    // Up to the end of a page: what lies behind may not be mapped.
    const count = Math.min(mostBytes - at, PAGE_BYTES - ((address + at) & (PAGE_BYTES - 1)));
    try {
      text.set(await tables.readMemory(address + at, count), at);
    } catch (error) {
      if (at < mostBytes - MAX_NAME_BYTES || !(error instanceof LivegraftError)) throw error;
      break;
    }
    at += count;
  }
  return text;
}

const PAGE_BYTES = 4096;
/** `KSYM_NAME_LEN` */
const MAX_NAME_BYTES = 512;
