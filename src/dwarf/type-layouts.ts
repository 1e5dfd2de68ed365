import { ByteReader } from '../base/byte-reader.js';

/** The sections of one object that describe types, and where relocations put what the bytes do not hold yet. */
export interface DebugSections {
  readonly info: Uint8Array;
  readonly abbrev: Uint8Array;
  readonly str: Uint8Array;
  readonly lineStr: Uint8Array;
  /** By offset in `info`: the value of the field there once relocated; undefined where there is no relocation. */
  readonly relocated: (offset: number) => number | undefined;
  readonly source: string;
}

interface Die {
  readonly tag: number;
  readonly name: string | undefined;
  readonly sizeBytes: number | undefined;
  readonly location: number | undefined;
  readonly bits: string;
  readonly count: number | undefined;
  /** Offset of the type's entry. */
  readonly type: number | undefined;
  readonly isDeclaration: boolean;
  readonly children: number[];
  readonly parent: number | undefined;
}

interface Abbreviation {
  readonly tag: number;
  readonly hasChildren: boolean;
  readonly attributes: readonly { readonly name: number; readonly form: number; readonly constant: number }[];
}

const TAG = {
  arrayType: 0x01,
  classType: 0x02,
  member: 0x0d,
  pointerType: 0x0f,
  referenceType: 0x10,
  structureType: 0x13,
  unionType: 0x17,
  inheritance: 0x1c,
  subrangeType: 0x21,
  constType: 0x26,
  volatileType: 0x35,
  namespace: 0x39,
  rvalueReferenceType: 0x42,
} as const;
const AT = {
  name: 0x03,
  byteSize: 0x0b,
  bitOffset: 0x0c,
  bitSize: 0x0d,
  upperBound: 0x2f,
  count: 0x37,
  memberLocation: 0x38,
  declaration: 0x3c,
  type: 0x49,
  dataBitOffset: 0x6b,
} as const;

const MAX_NESTING = 64;
/** How deep types without a name are looked into. */
const MAX_DEPTH = 8;
/** Beyond this a description is cut: types without a name can contain each other many times. */
const MAX_TEXT = 100_000;

/**
 * The layouts of all named structures, classes and unions of an object (DWARF 4 and 5, section 5.7), as text that is equal
 * when they are laid out alike: size, and each member's place, name and type. Throws a ParseError for malformed data.
 */
export function parseTypeLayouts(sections: DebugSections): ReadonlyMap<string, string> {
  const dies = new DieReader(sections).read();
  const layouts = new Map<string, string>();
  for (const die of dies.values()) {
    if (!isComposite(die.tag) || die.name === undefined || die.isDeclaration) continue;
    layouts.set(`${kindOf(die.tag)} ${qualifiedName(die, dies)}`, layoutText(die, dies, 0));
  }
  return layouts;
}

function isComposite(tag: number): boolean {
  return tag === TAG.structureType || tag === TAG.classType || tag === TAG.unionType;
}

function kindOf(tag: number): string {
  return tag === TAG.unionType ? 'union' : 'struct';
}

function qualifiedName(die: Die, dies: ReadonlyMap<number, Die>): string {
  const names = [die.name ?? ''];
  let parent = die.parent === undefined ? undefined : dies.get(die.parent);
  for (let i = 0; parent !== undefined && i < MAX_NESTING; i++) {
    if (isComposite(parent.tag) || parent.tag === TAG.namespace) names.unshift(parent.name ?? '');
    parent = parent.parent === undefined ? undefined : dies.get(parent.parent);
  }
  return names.join('::');
}

function layoutText(die: Die, dies: ReadonlyMap<number, Die>, depth: number): string {
  let length = 0;
  const members = die.children.flatMap((offset) => {
    if (length > MAX_TEXT) return [];
    const member = dies.get(offset);
    if (member?.tag !== TAG.member && member?.tag !== TAG.inheritance) return [];
    const text = `${member.name ?? ''}@${member.location ?? 0}${member.bits}:${typeText(member.type, dies, depth + 1)}`;
    length += text.length;
    return [text];
  });
  return `${die.sizeBytes ?? 0}{${members.join(',')}}`.slice(0, MAX_TEXT);
}

/** Types with a name are told by it, pointers as such: what they lead to has a layout of its own. */
function typeText(offset: number | undefined, dies: ReadonlyMap<number, Die>, depth: number): string {
  const die = offset === undefined ? undefined : dies.get(offset);
  if (die === undefined || depth > MAX_DEPTH) return '';
  switch (die.tag) {
    case TAG.pointerType:
    case TAG.referenceType:
    case TAG.rvalueReferenceType:
      return '*';
    case TAG.constType:
    case TAG.volatileType:
      return typeText(die.type, dies, depth + 1);
    case TAG.arrayType: {
      const counts = die.children.map((child) => `[${dies.get(child)?.count ?? ''}]`);
      return `${typeText(die.type, dies, depth + 1)}${counts.join('')}`;
    }
    default:
      if (die.name !== undefined) return die.name;
      return isComposite(die.tag) ? layoutText(die, dies, depth) : `#${die.sizeBytes ?? ''}`;
  }
}

class DieReader {
  readonly #sections: DebugSections;
  readonly #dies = new Map<number, Die>();

  constructor(sections: DebugSections) {
    this.#sections = sections;
  }

  read(): ReadonlyMap<number, Die> {
    const { info, source } = this.#sections;
    const reader = new ByteReader(info, `${source}(.debug_info)`);
    while (!reader.atEnd) this.#readUnit(reader);
    return this.#dies;
  }

  /** DWARF 5 section 7.5.1. */
  #readUnit(reader: ByteReader): void {
    const start = reader.offset;
    const length = reader.readU32();
    if (length >= 0xfffffff0) reader.fail('64-bit DWARF is not supported');
    if (length > reader.remaining) reader.fail(`a unit of ${length} bytes, ${reader.remaining} left`);
    const end = reader.offset + length;
    const version = reader.readU16();
    if (version < 2 || version > 5) reader.fail(`DWARF version ${version}`);
    let addressBytes: number;
    let abbrevAt: number;
    if (version === 5) {
      const kind = reader.readU8();
      addressBytes = reader.readU8();
      abbrevAt = this.#sectionOffset(reader);
      // Type units have a signature and an offset, skeletons an id.
      if (kind === 2 || kind === 6) reader.skip(12);
      else if (kind === 4 || kind === 5) reader.skip(8);
    } else {
      abbrevAt = this.#sectionOffset(reader);
      addressBytes = reader.readU8();
    }
    const abbreviations = this.#readAbbreviations(abbrevAt);
    const parents: number[] = [];
    while (reader.offset < end) {
      const offset = reader.offset;
      const code = reader.readUleb128();
      if (code === 0) {
        parents.pop();
        continue;
      }
      const abbreviation = abbreviations.get(code);
      if (abbreviation === undefined) {
        reader.fail(`abbreviation ${code} is not there`);
        return;
      }
      const parent = parents[parents.length - 1];
      const die = this.#readDie(reader, abbreviation, { start, version, addressBytes, parent });
      this.#dies.set(offset, die);
      if (parent !== undefined) this.#dies.get(parent)?.children.push(offset);
      if (abbreviation.hasChildren) {
        if (parents.length >= MAX_NESTING) reader.fail('entries are nested too deeply');
        parents.push(offset);
      }
    }
    reader.seek(end);
  }

  #readDie(
    reader: ByteReader,
    { tag, attributes }: Abbreviation,
    unit: {
      readonly start: number;
      readonly version: number;
      readonly addressBytes: number;
      readonly parent: number | undefined;
    },
  ): Die {
    let name: string | undefined;
    let [sizeBytes, location, count, type]: (number | undefined)[] = [];
    let bits = '';
    let isDeclaration = false;
    for (const attribute of attributes) {
      const value = this.#readForm(reader, attribute.form, attribute.constant, unit);
      const number = typeof value === 'number' ? value : undefined;
      switch (attribute.name) {
        case AT.name:
          name = typeof value === 'string' ? value : undefined;
          break;
        case AT.byteSize:
          sizeBytes = number;
          break;
        case AT.memberLocation:
          location = number;
          break;
        case AT.bitOffset:
        case AT.bitSize:
        case AT.dataBitOffset:
          bits += `.${number}`;
          break;
        case AT.upperBound:
          count = number === undefined ? undefined : number + 1;
          break;
        case AT.count:
          count = number;
          break;
        case AT.type:
          type = number;
          break;
        case AT.declaration:
          isDeclaration = true;
          break;
      }
    }
    return {
      tag,
      name,
      sizeBytes,
      location,
      bits,
      count,
      type,
      isDeclaration,
      children: [],
      parent: unit.parent,
    };
  }

  /** Numbers, texts and references (as offsets in `.debug_info`); undefined for what no layout needs. DWARF 5, 7.5.6. */
  #readForm(
    reader: ByteReader,
    form: number,
    constant: number,
    unit: { readonly start: number; readonly version: number; readonly addressBytes: number },
  ): number | string | undefined {
    switch (form) {
      case 0x01: // addr
        reader.skip(unit.addressBytes);
        return undefined;
      case 0x03: // block2
        reader.skip(reader.readU16());
        return undefined;
      case 0x04: // block4
        reader.skip(reader.readU32());
        return undefined;
      case 0x09: // block
      case 0x18: // exprloc
        reader.skip(reader.readUleb128());
        return undefined;
      case 0x0a: // block1
        reader.skip(reader.readU8());
        return undefined;
      case 0x05:
        return reader.readU16();
      case 0x06:
        return reader.readU32();
      case 0x07:
        return Number(reader.readU64());
      case 0x08:
        return reader.readCString();
      case 0x0b:
      case 0x0c:
        return reader.readU8();
      case 0x0d:
        return reader.readSleb128();
      case 0x0e: // strp
        return this.#text(this.#sections.str, this.#sectionOffset(reader));
      case 0x1f: // line_strp
        return this.#text(this.#sections.lineStr, this.#sectionOffset(reader));
      case 0x0f:
        return reader.readUleb128();
      case 0x10: // ref_addr
        return this.#sectionOffset(reader);
      case 0x11:
        return unit.start + reader.readU8();
      case 0x12:
        return unit.start + reader.readU16();
      case 0x13:
        return unit.start + reader.readU32();
      case 0x14:
      case 0x20: // ref8, ref_sig8
        reader.skip(8);
        return undefined;
      case 0x15:
        return unit.start + reader.readUleb128();
      case 0x17: // sec_offset
        reader.skip(4);
        return undefined;
      case 0x19: // flag_present
        return 1;
      case 0x21: // implicit_const
        return constant;
      case 0x1e: // data16
        reader.skip(16);
        return undefined;
      case 0x1a:
      case 0x1b:
      case 0x22:
      case 0x23: // strx, addrx, loclistx, rnglistx
        reader.readUleb128();
        return undefined;
      case 0x25:
      case 0x29:
        reader.skip(1);
        return undefined;
      case 0x26:
      case 0x2a:
        reader.skip(2);
        return undefined;
      default:
        return reader.fail(`form 0x${form.toString(16)}`);
    }
  }

  #sectionOffset(reader: ByteReader): number {
    const at = reader.offset;
    const stored = reader.readU32();
    return this.#sections.relocated(at) ?? stored;
  }

  #text(section: Uint8Array, offset: number): string {
    return new ByteReader(section, `${this.#sections.source}(.debug_str)`).seek(offset).readCString();
  }

  #readAbbreviations(offset: number): ReadonlyMap<number, Abbreviation> {
    const reader = new ByteReader(this.#sections.abbrev, `${this.#sections.source}(.debug_abbrev)`).seek(
      offset,
    );
    const found = new Map<number, Abbreviation>();
    for (let code = reader.readUleb128(); code !== 0; code = reader.readUleb128()) {
      const tag = reader.readUleb128();
      const hasChildren = reader.readU8() !== 0;
      const attributes: Abbreviation['attributes'][number][] = [];
      for (;;) {
        const name = reader.readUleb128();
        const form = reader.readUleb128();
        const constant = form === 0x21 ? reader.readSleb128() : 0;
        if (name === 0 && form === 0) break;
        attributes.push({ name, form, constant });
      }
      found.set(code, { tag, hasChildren, attributes });
    }
    return found;
  }
}
