import { sortedOrder } from '../base/sorted-order.js';
import type { CfaRule, RegisterRule } from '../cfi/row.js';
import { CHANGED_ALL, CHANGED_SLOTS } from './frame-state.js';
import type { PositionIndex } from './position-index.js';

/** Where claims come from. */
export type ClaimKind = 'dwarf' | 'orc' | 'frame-pointer';

/** What a table says at one place, with what the checks need in plain numbers. Equal claims share one object. */
export interface Claim {
  readonly cfa: CfaRule;
  /** -1 where the CFA is an expression. */
  readonly cfaRegister: number;
  readonly cfaOffset: number;
  readonly rules: ReadonlyMap<number, RegisterRule>;
  /** Registers that are claimed to be saved at offsets from the CFA. */
  readonly savedRegisters: readonly number[];
  readonly savedOffsets: readonly number[];
  /** Registers that are claimed to be unchanged, among those that the source speaks of. */
  readonly sameRegisters: readonly number[];
  /** Registers with a rule of another kind. */
  readonly otherRegisters: readonly number[];
  /** The return address is claimed to be unknown: nothing is called from here. */
  readonly isOutermost: boolean;
  readonly isSignalFrame: boolean;
  /** The bits of a state's `changed` that whether this holds depends on. */
  readonly dependsOn: number;
}

/** Whether a row says anything of a register. */
export function speaksOf({ rules, sameRegisters }: Claim, register: number): boolean {
  return rules.has(register) || sameRegisters.includes(register);
}

/** Positions `[start, end)`. */
export interface ClaimUnit {
  readonly start: number;
  readonly end: number;
}

/** Claims over a code space: `starts[i]` (a position) up to the next start holds claim `ids[i]`. */
export class ClaimTable {
  readonly source: ClaimKind;
  readonly starts: Int32Array;
  readonly ids: Int32Array;
  /** By id; 0 is "nothing is claimed". */
  readonly claims: readonly (Claim | undefined)[];
  /** The stretches that the table treats as one: FDEs. Empty for ORC. */
  readonly units: readonly ClaimUnit[];

  constructor(
    source: ClaimKind,
    starts: Int32Array,
    ids: Int32Array,
    claims: readonly (Claim | undefined)[],
    units: readonly ClaimUnit[],
  ) {
    this.source = source;
    this.starts = starts;
    this.ids = ids;
    this.claims = claims;
    this.units = units;
  }

  /** Bit per register that some claim speaks of. */
  get registerMask(): number {
    let mask = 0;
    for (const claim of this.claims) {
      if (claim !== undefined)
        for (const register of claim.rules.keys()) if (register < 16) mask |= 1 << register;
    }
    return mask;
  }

  /** Index of the unit that holds a position, -1 for none. */
  unitIndexAt(position: number): number {
    let low = 0;
    let high = this.units.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.units[middle] as ClaimUnit).start <= position) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /**
   * Fills in the claim of each instruction, by id. `onChange` is called for the instructions where another row begins.
   */
  claimOfEach(index: PositionIndex, result: Int32Array, onChange?: (i: number) => void): Int32Array {
    const { starts, ids } = this;
    let id = 0;
    let from = 0;
    for (let row = 0; row < starts.length; row++) {
      const at = index.rank(starts[row] as number);
      for (; from < at; from++) result[from] = id;
      id = ids[row] as number;
      onChange?.(at);
    }
    result.fill(id, from);
    return result;
  }

  findAt(position: number): Claim | undefined {
    return this.claims[this.idAt(position)];
  }

  idAt(position: number): number {
    let low = 0;
    let high = this.starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.starts[middle] as number) <= position) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? 0 : (this.ids[low - 1] as number);
  }
}

/** Gathers rows, interns what they say, and makes gaps explicit. Rows may come in any order. */
export class ClaimBuilder {
  readonly #claims: (Claim | undefined)[] = [undefined];
  readonly #ids = new Map<string, number>();
  readonly #speaksOf: readonly number[];
  readonly #returnAddress: number;
  #starts = new Float64Array(1024);
  #ends = new Float64Array(1024);
  #rowIds = new Int32Array(1024);
  #count = 0;

  /** `speaksOf`: the registers about which silence means "unchanged". */
  constructor(speaksOf: readonly number[], returnAddress: number) {
    this.#speaksOf = speaksOf;
    this.#returnAddress = returnAddress;
  }

  /** The id of what a row says. `isSilent`: of registers that it does not name, it says nothing. */
  intern(
    row: {
      readonly cfa: CfaRule;
      readonly registers: ReadonlyMap<number, RegisterRule>;
      readonly signalFrame: boolean;
    },
    isSilent = false,
  ): number {
    let key =
      row.cfa.kind === 'register' ? `${row.cfa.register},${row.cfa.offset}` : `e${row.cfa.expression.join()}`;
    if (row.signalFrame) key += 's';
    if (isSilent) key += 'q';
    for (const [register, rule] of row.registers) key += `;${register}${ruleKey(rule)}`;
    const known = this.#ids.get(key);
    if (known !== undefined) return known;
    const speaksOf = isSilent ? [] : this.#speaksOf;
    const id = this.#claims.push(this.#makeClaim(row.cfa, row.registers, row.signalFrame, speaksOf)) - 1;
    this.#ids.set(key, id);
    return id;
  }

  claimOf(id: number): Claim | undefined {
    return this.#claims[id];
  }

  #makeClaim(
    cfa: CfaRule,
    rules: ReadonlyMap<number, RegisterRule>,
    isSignalFrame: boolean,
    speaksOf: readonly number[],
  ): Claim {
    const [savedRegisters, savedOffsets, otherRegisters]: [number[], number[], number[]] = [[], [], []];
    const sameRegisters = speaksOf.filter((register) => !rules.has(register));
    for (const [register, rule] of rules) {
      if (register > 16) continue;
      if (rule.kind === 'offset') {
        savedRegisters.push(register);
        savedOffsets.push(rule.offset);
      } else if (rule.kind === 'same') sameRegisters.push(register);
      else if (rule.kind !== 'undefined') otherRegisters.push(register);
    }
    const cfaRegister = cfa.kind === 'register' && cfa.register < 16 ? cfa.register : -1;
    let dependsOn = savedRegisters.length > 0 ? CHANGED_SLOTS : 0;
    for (const register of sameRegisters) if (register < 16) dependsOn |= 1 << register;
    if (cfaRegister >= 0) dependsOn |= 1 << cfaRegister;
    else dependsOn |= cfa.kind === 'expression' ? readBy(cfa.expression) : CHANGED_ALL;
    for (const register of otherRegisters) {
      const rule = rules.get(register);
      dependsOn |= rule?.kind === 'expression' ? readBy(rule.expression) : CHANGED_ALL;
    }
    return {
      cfa,
      cfaRegister,
      cfaOffset: cfa.kind === 'register' ? cfa.offset : 0,
      rules,
      savedRegisters,
      savedOffsets,
      sameRegisters: sameRegisters.filter((register) => register < 16),
      otherRegisters,
      isOutermost: rules.get(this.#returnAddress)?.kind === 'undefined',
      isSignalFrame,
      dependsOn,
    };
  }

  addRow(start: number, end: number, id: number): void {
    if (end <= start) return;
    if (this.#count === this.#starts.length) this.#grow();
    this.#starts[this.#count] = start;
    this.#ends[this.#count] = end;
    this.#rowIds[this.#count++] = id;
  }

  #grow(): void {
    const size = this.#starts.length * 2;
    const [starts, ends, ids] = [new Float64Array(size), new Float64Array(size), new Int32Array(size)];
    starts.set(this.#starts);
    ends.set(this.#ends);
    ids.set(this.#rowIds);
    [this.#starts, this.#ends, this.#rowIds] = [starts, ends, ids];
  }

  /** Of rows that overlap, the later one holds from its start on. */
  build(source: ClaimKind, units: readonly ClaimUnit[]): ClaimTable {
    const count = this.#count;
    let order: Uint32Array | undefined;
    for (let i = 1; i < count; i++) {
      if ((this.#starts[i] as number) < (this.#starts[i - 1] as number)) {
        order = sortedOrder(this.#starts.subarray(0, count));
        break;
      }
    }
    const starts = new Int32Array(2 * count);
    const ids = new Int32Array(2 * count);
    let n = 0;
    for (let i = 0; i < count; i++) {
      const row = order === undefined ? i : (order[i] as number);
      starts[n] = this.#starts[row] as number;
      ids[n++] = this.#rowIds[row] as number;
      const next =
        i + 1 < count
          ? (this.#starts[order === undefined ? i + 1 : (order[i + 1] as number)] as number)
          : Number.POSITIVE_INFINITY;
      const end = this.#ends[row] as number;
      if (end < next && end <= 0x7fff_ffff) {
        starts[n] = end;
        ids[n++] = 0;
      }
    }
    return new ClaimTable(
      source,
      starts.subarray(0, n),
      ids.subarray(0, n),
      this.#claims,
      [...units].sort((a, b) => a.start - b.start),
    );
  }
}

const [DW_OP_deref, DW_OP_consts, DW_OP_plus, DW_OP_plus_uconst, DW_OP_breg0] = [
  0x06, 0x11, 0x22, 0x23, 0x70,
];

/** What the value of an expression, or of the slot that it names, depends on: registers and slots, where it is as simple as those of aligned stacks. */
function readBy(expression: Uint8Array): number {
  let mask = CHANGED_SLOTS;
  for (let at = 0; at < expression.length; at++) {
    const op = expression[at] as number;
    if (op === DW_OP_deref || op === DW_OP_plus) continue;
    if (op >= DW_OP_breg0 && op < DW_OP_breg0 + 16) mask |= 1 << (op - DW_OP_breg0);
    else if (op !== DW_OP_consts && op !== DW_OP_plus_uconst) return CHANGED_ALL;
    do at++;
    while (at < expression.length && (expression[at] as number) >= 0x80);
  }
  return mask;
}

function ruleKey(rule: RegisterRule): string {
  switch (rule.kind) {
    case 'offset':
      return `o${rule.offset}`;
    case 'valOffset':
      return `v${rule.offset}`;
    case 'register':
      return `r${rule.register}`;
    case 'expression':
      return `x${rule.expression.join()}`;
    case 'valExpression':
      return `y${rule.expression.join()}`;
    default:
      return rule.kind;
  }
}

/** For people: `CFA=rsp+16, rbx at CFA-16, ra at CFA-8`. */
export function describeClaim(claim: Claim | undefined, nameOf: (register: number) => string): string {
  if (claim === undefined) return 'nothing';
  if (claim.isOutermost) return 'the outermost frame';
  const { cfa } = claim;
  const parts = [
    cfa.kind === 'register'
      ? `CFA=${nameOf(cfa.register)}${signed(cfa.offset)}`
      : `CFA=expression(${hexBytes(cfa.expression)})`,
  ];
  if (claim.isSignalFrame) parts.unshift('interrupted frame');
  claim.savedRegisters.forEach((register, i) => {
    parts.push(`${nameOf(register)} at CFA${signed(claim.savedOffsets[i] as number)}`);
  });
  for (const register of claim.otherRegisters) {
    parts.push(`${nameOf(register)} by ${claim.rules.get(register)?.kind}`);
  }
  return parts.join(', ');
}

function signed(value: number): string {
  return value < 0 ? `${value}` : `+${value}`;
}

function hexBytes(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}
