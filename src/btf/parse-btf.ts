import { ByteReader, decodeText } from '../base/byte-reader.js';
import type { BtfField, BtfFile, BtfMember, BtfType } from './btf.js';

const MAGIC = 0xeb9f;
const HEADER_BYTES = 24;
/** Structs that hold themselves can only come from damaged input. */
const MAX_DEPTH = 64;

/** Kinds by number, `BTF_KIND_…`. */
const KINDS = [
  undefined,
  'int',
  'ptr',
  'array',
  'struct',
  'union',
  'enum',
  'fwd',
  'typedef',
  'volatile',
  'const',
  'restrict',
  'func',
  'funcProto',
  'var',
  'dataSection',
  'float',
  'declTag',
  'typeTag',
  'enum64',
] as const satisfies readonly (BtfType['kind'] | undefined)[];

/** Bytes behind the 12-byte record head: a fixed part, and one per element. */
const EXTRA_BYTES: Readonly<Record<BtfType['kind'], readonly [number, number]>> = {
  int: [4, 0],
  ptr: [0, 0],
  array: [12, 0],
  struct: [0, 12],
  union: [0, 12],
  enum: [0, 8],
  fwd: [0, 0],
  typedef: [0, 0],
  volatile: [0, 0],
  const: [0, 0],
  restrict: [0, 0],
  func: [0, 0],
  funcProto: [0, 8],
  var: [4, 0],
  dataSection: [0, 12],
  float: [0, 0],
  declTag: [4, 0],
  typeTag: [0, 0],
  enum64: [0, 12],
};

/**
 * Parses a `.BTF` section. Records are indexed at once and decoded when asked for.
 * `base`: the kernel's types, where the section is a module's (split BTF): ids and strings go on where the base ends.
 * Throws a ParseError, whatever the bytes.
 */
export function parseBtf(bytes: Uint8Array, source: string, base?: BtfFile): BtfFile {
  return new ParsedBtf(bytes, source, base as ParsedBtf | undefined);
}

class ParsedBtf implements BtfFile {
  readonly source: string;
  readonly typeCount: number;
  readonly #base: ParsedBtf | undefined;
  readonly #firstId: number;
  readonly #types: ByteReader;
  readonly #offsets: Uint32Array;
  readonly #strings: Uint8Array;
  readonly #stringBase: number;
  readonly #decoded = new Map<number, BtfType>();
  #names: Map<string, number> | undefined;

  constructor(bytes: Uint8Array, source: string, base: ParsedBtf | undefined) {
    this.source = source;
    this.#base = base;
    const reader = new ByteReader(bytes, source);
    if (reader.readU16() !== MAGIC) reader.fail('no BTF data (its first bytes are not 9f eb)');
    const version = reader.readU8();
    if (version !== 1) reader.fail(`BTF version ${version}; only version 1 is known`);
    reader.skip(1);
    const headerBytes = reader.readU32();
    if (headerBytes < HEADER_BYTES) reader.fail(`BTF header of ${headerBytes} bytes`);
    const [typeAt, typeBytes, stringAt, stringBytes] = [
      reader.readU32(),
      reader.readU32(),
      reader.readU32(),
      reader.readU32(),
    ];
    this.#strings = reader.seek(headerBytes).skip(stringAt).readBytes(stringBytes);
    if (stringBytes > 0 && this.#strings[stringBytes - 1] !== 0) reader.fail('the last string has no end');
    this.#stringBase = base === undefined ? 0 : base.#stringBase + base.#strings.length;
    this.#types = reader.seek(headerBytes).skip(typeAt).readReader(typeBytes);
    this.#firstId = base === undefined ? 1 : base.typeCount;
    this.#offsets = this.#index();
    this.typeCount = this.#firstId + this.#offsets.length;
  }

  type(id: number): BtfType {
    if (this.#base !== undefined && id < this.#firstId) return this.#base.type(id);
    const known = this.#decoded.get(id);
    if (known !== undefined) return known;
    const offset = this.#offsets[id - this.#firstId];
    if (offset === undefined) return this.#types.seek(0).fail(`no type has id ${id}`);
    const type = this.#decode(offset);
    this.#decoded.set(id, type);
    return type;
  }

  findType(kind: BtfType['kind'], name: string): number | undefined {
    const inBase = this.#base?.findType(kind, name);
    if (inBase !== undefined) return inBase;
    if (this.#names === undefined) {
      this.#names = new Map();
      for (let i = 0; i < this.#offsets.length; i++) {
        const reader = this.#types.seek(this.#offsets[i] as number);
        const nameOffset = reader.readU32();
        if (nameOffset === 0) continue;
        const key = `${this.#kindOf(reader.readU32())} ${this.#string(nameOffset)}`;
        if (!this.#names.has(key)) this.#names.set(key, this.#firstId + i);
      }
    }
    return this.#names.get(`${kind} ${name}`);
  }

  resolve(id: number): number {
    let at = id;
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      if (at === 0) return 0;
      const type = this.type(at);
      switch (type.kind) {
        case 'typedef':
        case 'typeTag':
        case 'const':
        case 'volatile':
        case 'restrict':
          at = type.typeId;
          break;
        default:
          return at;
      }
    }
    return this.#types.seek(0).fail(`type ${id} is a typedef of itself`);
  }

  sizeOf(id: number): number | undefined {
    let count = 1;
    let at = this.resolve(id);
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      if (at === 0) return undefined;
      const type = this.type(at);
      switch (type.kind) {
        case 'array':
          count *= type.count;
          at = this.resolve(type.elementTypeId);
          continue;
        case 'ptr':
          return count * 8;
        case 'int':
        case 'float':
        case 'struct':
        case 'union':
        case 'enum':
        case 'enum64':
        case 'dataSection':
          return count * type.sizeBytes;
        default:
          return undefined;
      }
    }
    return this.#types.seek(0).fail(`type ${id} is an array of itself`);
  }

  findField(structId: number, path: string): BtfField | undefined {
    let typeId = structId;
    let bitOffset = 0;
    let bitFieldSize = 0;
    for (const name of path.split('.')) {
      const found = this.#findMember(this.resolve(typeId), name, 0);
      if (found === undefined) return undefined;
      bitOffset += found.bitOffset;
      bitFieldSize = found.bitFieldSize;
      typeId = found.typeId;
    }
    return { bitOffset, bitFieldSize, typeId };
  }

  #findMember(structId: number, name: string, depth: number): BtfField | undefined {
    if (structId === 0) return undefined;
    const type = this.type(structId);
    if (type.kind !== 'struct' && type.kind !== 'union') return undefined;
    if (depth > MAX_DEPTH) return this.#types.seek(0).fail(`struct ${type.name} holds itself`);
    const direct = type.members.find((member) => member.name === name);
    if (direct !== undefined) return direct;
    for (const member of type.members) {
      if (member.name !== '') continue;
      const inner = this.#findMember(this.resolve(member.typeId), name, depth + 1);
      if (inner !== undefined) return { ...inner, bitOffset: member.bitOffset + inner.bitOffset };
    }
    return undefined;
  }

  #index(): Uint32Array {
    const offsets: number[] = [];
    const reader = this.#types;
    while (!reader.atEnd) {
      offsets.push(reader.offset);
      reader.skip(4);
      const info = reader.readU32();
      const [fixed, each] = EXTRA_BYTES[this.#kindOf(info)];
      reader.skip(4 + fixed + each * (info & 0xffff));
    }
    return Uint32Array.from(offsets);
  }

  #kindOf(info: number): BtfType['kind'] {
    const number = (info >>> 24) & 0x1f;
    return KINDS[number] ?? this.#types.fail(`unknown kind ${number}`);
  }

  #string(offset: number): string {
    if (this.#base !== undefined && offset < this.#stringBase) return this.#base.#string(offset);
    const start = offset - this.#stringBase;
    if (start >= this.#strings.length)
      return this.#types.fail(`a name at ${offset} is outside of the strings`);
    return decodeText(this.#strings.subarray(start, this.#strings.indexOf(0, start)));
  }

  #decode(offset: number): BtfType {
    const reader = this.#types.seek(offset);
    const name = this.#string(reader.readU32());
    const info = reader.readU32();
    const kind = this.#kindOf(info);
    const count = info & 0xffff;
    const flag = info >>> 31 === 1;
    // A size or a type id, depending on the kind.
    const word = reader.readU32();
    const list = <T>(read: () => T): T[] => Array.from({ length: count }, read);
    switch (kind) {
      case 'int': {
        const data = reader.readU32();
        const encoding = (data >>> 24) & 15;
        return {
          kind,
          name,
          sizeBytes: word,
          bitOffset: (data >>> 16) & 0xff,
          bits: data & 0xff,
          encoding: { signed: (encoding & 1) !== 0, char: (encoding & 2) !== 0, bool: (encoding & 4) !== 0 },
        };
      }
      case 'float':
        return { kind, name, sizeBytes: word };
      case 'array':
        return {
          kind,
          elementTypeId: reader.readU32(),
          indexTypeId: reader.readU32(),
          count: reader.readU32(),
        };
      case 'struct':
      case 'union':
        return { kind, name, sizeBytes: word, members: list(() => this.#member(reader, flag)) };
      case 'enum':
        return {
          kind,
          name,
          sizeBytes: word,
          signed: flag,
          values: list(() => ({
            name: this.#string(reader.readU32()),
            value: BigInt(flag ? reader.readI32() : reader.readU32()),
          })),
        };
      case 'enum64':
        return {
          kind,
          name,
          sizeBytes: word,
          signed: flag,
          values: list(() => ({
            name: this.#string(reader.readU32()),
            value: flag ? reader.readI64() : reader.readU64(),
          })),
        };
      case 'fwd':
        return { kind, name, of: flag ? 'union' : 'struct' };
      case 'ptr':
      case 'volatile':
      case 'const':
      case 'restrict':
        return { kind, typeId: word };
      case 'typedef':
      case 'typeTag':
        return { kind, name, typeId: word };
      case 'func':
        return { kind, name, typeId: word, linkage: count };
      case 'funcProto':
        return {
          kind,
          returnTypeId: word,
          parameters: list(() => ({ name: this.#string(reader.readU32()), typeId: reader.readU32() })),
        };
      case 'var':
        return { kind, name, typeId: word, linkage: reader.readU32() };
      case 'dataSection':
        return {
          kind,
          name,
          sizeBytes: word,
          variables: list(() => ({
            typeId: reader.readU32(),
            offset: reader.readU32(),
            sizeBytes: reader.readU32(),
          })),
        };
      case 'declTag':
        return { kind, name, typeId: word, component: reader.readI32() };
    }
  }

  #member(reader: ByteReader, hasBitFields: boolean): BtfMember {
    const name = this.#string(reader.readU32());
    const typeId = reader.readU32();
    const offset = reader.readU32();
    return {
      name,
      typeId,
      bitOffset: hasBitFields ? offset & 0xffffff : offset,
      bitFieldSize: hasBitFields ? offset >>> 24 : 0,
    };
  }
}
