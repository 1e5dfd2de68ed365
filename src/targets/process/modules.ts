import { readFileSync, statSync } from 'node:fs';
import { inflateSync } from 'node:zlib';
import { LivegraftError } from '../../base/errors.js';
import { PT_LOAD } from '../../elf/constants.js';
import type { ElfFile } from '../../elf/elf-file.js';
import { parseElf } from '../../elf/reader.js';
import type { ProcessMemory } from './memory.js';
import { type Mapping, memoryFolder } from './proc.js';

/** An ELF file that is mapped into the target, parsed when first asked for. */
export class LoadedModule {
  /** The file's last path component, or `[vdso]`. */
  readonly name: string;
  /** As the kernel prints it. */
  readonly path: string;
  /** The target addresses it covers, from its first mapping to its last. */
  readonly start: number;
  readonly end: number;
  readonly mappings: readonly Mapping[];
  readonly #load: () => Uint8Array;
  #elf: ElfFile | undefined;
  #bias: number | undefined;

  constructor(path: string, mappings: readonly Mapping[], load: () => Uint8Array) {
    this.path = path;
    this.name = path.replace(/ \(deleted\)$/, '').replace(/^.*\//, '');
    this.mappings = mappings;
    this.start = (mappings[0] as Mapping).start;
    this.end = (mappings[mappings.length - 1] as Mapping).end;
    this.#load = load;
  }

  get elf(): ElfFile {
    this.#elf ??= parseElf(this.#load(), this.path, {
      inflate: (bytes, sizeBytes) => inflateSync(bytes, { maxOutputLength: Math.max(1, sizeBytes) }),
      image: this.name === '[vdso]',
    });
    return this.#elf;
  }

  /** Target address minus link address. */
  get bias(): number {
    this.#bias ??= this.#findBias();
    return this.#bias;
  }

  #findBias(): number {
    const first = this.mappings[0] as Mapping;
    const pageOf = (value: number) => Math.floor(value / 4096) * 4096;
    for (const segment of this.elf.segments) {
      if (segment.type !== PT_LOAD) continue;
      if (pageOf(segment.offset) === first.fileOffset) return first.start - pageOf(segment.address);
    }
    throw new LivegraftError(
      'module-unmapped',
      `${this.path}: no segment of the file is mapped at ${first.start}`,
      {
        remedy: 'the file on disk may not be the one that runs; restart the program',
      },
    );
  }
}

/** All ELF files mapped executable in a process, the vDSO included, in address order. */
export function listModules(memory: ProcessMemory, mappings: readonly Mapping[]): LoadedModule[] {
  const byFile = new Map<string, Mapping[]>();
  for (const mapping of mappings) {
    if (!mapping.name.startsWith('/') || mapping.name.startsWith('/memfd:') || mapping.inode === 0) continue;
    const key = `${mapping.device} ${mapping.inode}`;
    const group = byFile.get(key);
    if (group === undefined) byFile.set(key, [mapping]);
    else group.push(mapping);
  }
  const modules: LoadedModule[] = [];
  for (const group of [...byFile.values()].flatMap(copiesOf)) {
    const first = group[0] as Mapping;
    modules.push(new LoadedModule(first.name, group, () => readMappedFile(memory.pid, first)));
  }
  const vdso = mappings.find((m) => m.name === '[vdso]');
  if (vdso !== undefined) {
    const load = () => new Uint8Array(memory.readExactly(vdso.start, vdso.end - vdso.start));
    modules.push(new LoadedModule('[vdso]', [vdso], load));
  }
  return modules.sort((a, b) => a.start - b.start);
}

/**
 * A file can be there more than once (dlmopen, or read as data): each copy begins with the file's first page. What is not
 * executable is no copy; a small file's data can begin in its first page, too.
 */
function copiesOf(mappings: readonly Mapping[]): Mapping[][] {
  const pieces: Mapping[][] = [];
  for (const mapping of mappings) {
    const last = pieces.at(-1);
    if (last === undefined || mapping.fileOffset === last[0]?.fileOffset) pieces.push([mapping]);
    else last.push(mapping);
  }
  const copies: Mapping[][] = [];
  for (const piece of pieces) {
    if (piece.some((mapping) => mapping.executable)) copies.push(piece);
    else copies.at(-1)?.push(...piece);
  }
  return copies;
}

/**
 * The very file that is mapped: by `map_files`, which also finds deleted and replaced ones; else by its path in the
 * process's own root, when that still is the same inode.
 */
function readMappedFile(pid: number, mapping: Mapping): Uint8Array {
  const range = `${mapping.start.toString(16)}-${mapping.end.toString(16)}`;
  try {
    return readFileSync(`${memoryFolder(pid)}/map_files/${range}`);
  } catch {
    // map_files needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
  }
  const path = `${memoryFolder(pid)}/root${mapping.name}`;
  try {
    if (statSync(path).ino === mapping.inode) return readFileSync(path);
  } catch (cause) {
    throw unreadable(pid, mapping, cause);
  }
  throw unreadable(pid, mapping, undefined);
}

function unreadable(pid: number, mapping: Mapping, cause: unknown): LivegraftError {
  return new LivegraftError(
    'file-unreadable',
    `process ${pid}: the file that is mapped as ${mapping.name} can't be read`,
    {
      remedy:
        'run livegraft as root: a deleted or replaced file is reachable only through /proc/PID/map_files',
      details: { pid, path: mapping.name },
      cause,
    },
  );
}
