/**
 * The types of a `.BTF` section (Documentation/bpf/btf.rst, `include/uapi/linux/btf.h`). Type id 0 is `void` and has no
 * record. Offsets of members are in bits, sizes in bytes.
 */

export interface BtfMember {
  /** Empty for an unnamed struct or union member. */
  readonly name: string;
  readonly typeId: number;
  readonly bitOffset: number;
  /** 0 unless the member is a bit field and the record says so (`kind_flag`). */
  readonly bitFieldSize: number;
}

export type BtfType =
  | {
      readonly kind: 'int';
      readonly name: string;
      readonly sizeBytes: number;
      readonly bitOffset: number;
      readonly bits: number;
      readonly encoding: { readonly signed: boolean; readonly char: boolean; readonly bool: boolean };
    }
  | { readonly kind: 'float'; readonly name: string; readonly sizeBytes: number }
  | {
      readonly kind: 'array';
      readonly elementTypeId: number;
      readonly indexTypeId: number;
      readonly count: number;
    }
  | {
      readonly kind: 'struct' | 'union';
      readonly name: string;
      readonly sizeBytes: number;
      readonly members: readonly BtfMember[];
    }
  | {
      readonly kind: 'enum' | 'enum64';
      readonly name: string;
      readonly sizeBytes: number;
      readonly signed: boolean;
      readonly values: readonly { readonly name: string; readonly value: bigint }[];
    }
  | { readonly kind: 'fwd'; readonly name: string; readonly of: 'struct' | 'union' }
  | { readonly kind: 'ptr' | 'volatile' | 'const' | 'restrict'; readonly typeId: number }
  | { readonly kind: 'typedef' | 'typeTag'; readonly name: string; readonly typeId: number }
  /** `typeId` is a `funcProto`; `linkage` is `BTF_FUNC_STATIC` 0, `GLOBAL` 1, `EXTERN` 2. */
  | { readonly kind: 'func'; readonly name: string; readonly typeId: number; readonly linkage: number }
  | {
      readonly kind: 'funcProto';
      readonly returnTypeId: number;
      readonly parameters: readonly { readonly name: string; readonly typeId: number }[];
    }
  | { readonly kind: 'var'; readonly name: string; readonly typeId: number; readonly linkage: number }
  | {
      readonly kind: 'dataSection';
      readonly name: string;
      readonly sizeBytes: number;
      readonly variables: readonly {
        readonly typeId: number;
        readonly offset: number;
        readonly sizeBytes: number;
      }[];
    }
  | { readonly kind: 'declTag'; readonly name: string; readonly typeId: number; readonly component: number };

/** A member found by name, unnamed structs and unions looked into. */
export interface BtfField {
  /** From the start of the outermost struct. */
  readonly bitOffset: number;
  readonly bitFieldSize: number;
  readonly typeId: number;
}

export interface BtfFile {
  readonly source: string;
  /** One more than the highest type id. */
  readonly typeCount: number;
  /** Throws a `ParseError` for an id that is out of range, for 0, and for a damaged record. */
  type(id: number): BtfType;
  /** The first id of a named type of that kind; undefined when there is none. */
  findType(kind: BtfType['kind'], name: string): number | undefined;
  /** Follows typedefs, qualifiers and type tags; 0 stays 0. */
  resolve(id: number): number;
  /** Size of a value of this type in bytes; undefined for void, functions and forward declarations. */
  sizeOf(id: number): number | undefined;
  /** A member of a struct or union by name, `a.b` for a member of a member. Undefined when it has none of that name. */
  findField(structId: number, path: string): BtfField | undefined;
}
