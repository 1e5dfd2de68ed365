import { foldAddress, hex } from '../../base/brand.js';
import { decodeText } from '../../base/byte-reader.js';
import { LivegraftError } from '../../base/errors.js';
import type { BtfFile } from '../../btf/btf.js';
import type { GuestMemory } from './guest-memory.js';

/** Where a member lies. */
export interface FieldPlace {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Offsets of a kernel's structures, from its own type information. */
export class KernelLayout {
  readonly #btf: BtfFile;
  readonly #source: string;

  constructor(btf: BtfFile, source: string) {
    this.#btf = btf;
    this.#source = source;
  }

  sizeOf(struct: string): number | undefined {
    const id = this.#btf.findType('struct', struct);
    return id === undefined ? undefined : this.#btf.sizeOf(id);
  }

  /** Undefined when the kernel has no such structure or member, which differs by version and configuration. */
  find(struct: string, path: string): FieldPlace | undefined {
    const id = this.#btf.findType('struct', struct);
    const field = id === undefined ? undefined : this.#btf.findField(id, path);
    if (field === undefined || field.bitOffset % 8 !== 0) return undefined;
    return { offset: field.bitOffset / 8, sizeBytes: this.#btf.sizeOf(field.typeId) ?? 0 };
  }

  /** Throws a LivegraftError `kernel-unsupported` when there is none. */
  expect(struct: string, ...paths: readonly string[]): FieldPlace {
    for (const path of paths) {
      const place = this.find(struct, path);
      if (place !== undefined) return place;
    }
    throw new LivegraftError(
      'kernel-unsupported',
      `${this.#source}: struct ${struct} has no member ${paths.join(' or ')}`,
      { remedy: 'this kernel differs from those that livegraft knows (5.10 and later)' },
    );
  }

  /**
   * The first aligned place of so many bytes (a power of 2) between members of a structure, where no member is: what a
   * copy of the whole structure takes along, and nothing else ever touches. Undefined when it has none. What lies behind
   * the last member does not count, nor what shares 8 bytes with a bit field: a store to that may be as wide (C11,
   * 3.14: a memory location).
   */
  findPadding(struct: string, sizeBytes: number): FieldPlace | undefined {
    const id = this.#btf.findType('struct', struct);
    const ranges = id === undefined ? undefined : this.#occupied(id, 0);
    if (ranges === undefined) return undefined;
    ranges.sort((a, b) => a.start - b.start);
    let free = 0;
    for (const { start, end } of ranges) {
      const offset = Math.ceil(free / sizeBytes) * sizeBytes;
      if (offset + sizeBytes <= start) return { offset, sizeBytes };
      free = Math.max(free, end);
    }
    return undefined;
  }

  /** Bytes that members take, those of unnamed structures one by one; undefined when the size of one is not known. */
  #occupied(structId: number, base: number): { start: number; end: number }[] | undefined {
    const type = this.#btf.type(structId);
    if (type.kind !== 'struct') return undefined;
    const ranges: { start: number; end: number }[] = [];
    for (const { name, typeId, bitOffset, bitFieldSize } of type.members) {
      const start = base + bitOffset / 8;
      const resolved = this.#btf.resolve(typeId);
      // The fields that a randomised layout moves are one unnamed structure.
      const inner =
        name === '' && this.#btf.type(resolved).kind === 'struct'
          ? this.#occupied(resolved, start)
          : undefined;
      const size = bitFieldSize > 0 ? bitFieldSize / 8 : this.#btf.sizeOf(typeId);
      if (size === undefined) return undefined;
      const unit = bitFieldSize > 0 || bitOffset % 8 !== 0 ? 8 : 1;
      if (inner !== undefined) ranges.push(...inner);
      else
        ranges.push({ start: Math.floor(start / unit) * unit, end: Math.ceil((start + size) / unit) * unit });
    }
    return ranges;
  }

  /** What a constant of an enumeration stands for; undefined when the kernel has none of that name. */
  enumValue(name: string, constant: string): number | undefined {
    const id = this.#btf.findType('enum', name);
    const type = id === undefined ? undefined : this.#btf.type(id);
    const value = type?.kind === 'enum' ? type.values.find((each) => each.name === constant) : undefined;
    return value && Number(value.value);
  }

  /** Names of the members of a structure that begin and end so, in order. */
  members(struct: string): readonly string[] {
    const id = this.#btf.findType('struct', struct);
    const type = id === undefined ? undefined : this.#btf.type(id);
    return type?.kind === 'struct' ? type.members.map((member) => member.name) : [];
  }
}

/** Reads members of structures in guest memory. */
export class StructReader {
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  async address(base: number, place: FieldPlace | { readonly offset: number }): Promise<number> {
    return addressOf(await this.#member(base, place.offset, 8));
  }

  /** An unsigned number of 1, 2, 4 or 8 bytes. */
  async number(base: number, place: FieldPlace): Promise<number> {
    return numberOf(await this.#member(base, place.offset, place.sizeBytes));
  }

  /** Several members in one go. */
  async record<Name extends string>(
    base: number,
    places: Readonly<Record<Name, FieldPlace>>,
  ): Promise<Record<Name, Uint8Array>> {
    const entries = Object.entries(places) as [Name, FieldPlace][];
    const buffers = entries.map(([name, place]) => {
      const rest = place.offset % 8;
      return {
        name,
        rest,
        from: base + (place.offset - rest),
        bytes: new Uint8Array(place.sizeBytes + rest),
      };
    });
    const whole = await this.#memory.settle(() => {
      let read = 0;
      for (const { from, bytes } of buffers) if (this.#memory.readInto(from, bytes) === bytes.length) read++;
      return read;
    });
    if (whole < buffers.length)
      throw new LivegraftError('guest-memory', `a structure of the guest at ${hex(base)} can't be read`);
    return Object.fromEntries(buffers.map(({ name, rest, bytes }) => [name, bytes.subarray(rest)])) as Record<
      Name,
      Uint8Array
    >;
  }

  /** A signed number of 4 bytes. */
  async int(base: number, place: FieldPlace): Promise<number> {
    return (await this.number(base, place)) | 0;
  }

  /** Structures are aligned to 8 bytes or more; a sum with an offset that is not might not be exact. */
  async #member(base: number, offset: number, sizeBytes: number): Promise<Uint8Array> {
    const rest = offset % 8;
    const bytes = await this.#memory.read(base + (offset - rest), sizeBytes + rest);
    return bytes.subarray(rest);
  }

  /** A fixed array of characters up to its first NUL. */
  async text(base: number, place: FieldPlace): Promise<string> {
    return textOf(await this.#member(base, place.offset, place.sizeBytes));
  }

  /** The structures on a circular `list_head`, given where their link lies; at most `limit`. */
  async list(head: number, link: FieldPlace, limit: number): Promise<number[]> {
    const found: number[] = [];
    for (
      let at = await this.address(head, { offset: 0 });
      at !== head;
      at = await this.address(at, { offset: 0 })
    ) {
      if (at >= 0 || found.length >= limit) {
        throw new LivegraftError(
          'guest-inconsistent',
          `a list of the guest is broken behind ${found.length} entries`,
          {
            remedy: 'it was stopped while it changed the list: repeat the command',
          },
        );
      }
      found.push(at - link.offset);
    }
    return found;
  }
}

/** An unsigned number of up to 8 bytes. */
export function numberOf(bytes: Uint8Array): number {
  let value = 0;
  for (let i = bytes.length - 1; i >= 0; i--) value = value * 256 + (bytes[i] as number);
  return value;
}

export function addressOf(bytes: Uint8Array): number {
  return foldAddress(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
}

/** Characters up to the first NUL. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return decodeText(end < 0 ? bytes : bytes.subarray(0, end));
}
