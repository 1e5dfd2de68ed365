import type { SourceLine } from '../dwarf/line-section.js';

/** Every code that `livegraft validate` reports (docs/diagnostics.md). Codes are stable. */
export const FINDING_CODES = {
  'cfa-mismatch': 'error',
  'cfa-unproven': 'warning',
  'return-address-mismatch': 'error',
  'saved-register-mismatch': 'error',
  'register-clobbered': 'error',
  'row-inside-instruction': 'error',
  'malformed-table': 'error',
  'missing-table': 'warning',
  'orphan-entry': 'warning',
  'undecodable-code': 'warning',
  'missing-row': 'note',
  'jump-not-followed': 'note',
  'jump-table-unbounded': 'note',
  'row-assumed': 'note',
  'call-without-frame-pointer': 'error',
  'frame-pointer-not-restored': 'error',
  'register-not-restored': 'error',
  'stack-not-restored': 'error',
  'falls-through': 'error',
  'unreachable-code': 'warning',
  'call-to-unmarked-code': 'warning',
  'sources-disagree': 'error',
} as const;

export type FindingCode = keyof typeof FINDING_CODES;

export type FindingLevel = 'error' | 'warning' | 'note';

export type ClaimSource = 'dwarf' | 'debug-frame' | 'orc' | 'frame-pointer';

/** Where in a file a finding lies. */
export interface FindingPlace {
  readonly section: string;
  /** A link address; an offset in the section of a relocatable object. */
  readonly address: number;
  readonly function: string | undefined;
  /** From the function's start, when that is known. */
  readonly functionOffset: number | undefined;
  /** Where the instruction comes from, where line tables tell. */
  readonly line: SourceLine | undefined;
}

export interface Finding {
  readonly code: FindingCode;
  readonly level: FindingLevel;
  readonly source: ClaimSource | undefined;
  readonly place: FindingPlace | undefined;
  /** Where control came from, when that was a jump or the fall-through before. */
  readonly from: FindingPlace | undefined;
  readonly message: string;
  readonly claimed: string | undefined;
  readonly derived: string | undefined;
  readonly remedy: string;
  /** How many more of the same code and register the same function has. */
  readonly repeats: number;
}

export const REMEDIES: Readonly<Record<FindingCode, string>> = {
  'cfa-mismatch':
    'correct the row (in assembly: .cfi_def_cfa_offset after every push, pop and change of the stack pointer)',
  'cfa-unproven':
    'keep the CFA where the instructions show it: in a register, or in a slot that was written from one',
  'return-address-mismatch': 'the return address lies at CFA-8 in every frame of a call: correct the rule',
  'saved-register-mismatch':
    'put .cfi_offset where the register is saved, and .cfi_restore where it is restored',
  'register-clobbered':
    'save the register first and say where (.cfi_offset), or declare it lost (.cfi_undefined)',
  'row-inside-instruction': 'move the directive to the boundary of an instruction',
  'malformed-table': 'rebuild the file: unwinders skip what they cannot read',
  'missing-table':
    'build the file with it (-fasynchronous-unwind-tables; kernel: objtool), or do not ask for it',
  'orphan-entry': 'link with --gc-sections and --eh-frame-hdr, or remove the entry',
  'undecodable-code': 'move data out of the code, or mark it as an object (.type name, @object)',
  'missing-row': 'wrap the function in .cfi_startproc and .cfi_endproc (kernel: let objtool see it)',
  'jump-not-followed':
    'nothing, when what it leads to is right; in assembly, give its targets rows, or jump through a table',
  'jump-table-unbounded': 'nothing, when the table has no more entries; a check of the index makes it known',
  'row-assumed':
    'nothing, when the row is right; make known what leads there (a jump table with relocations, a symbol)',
  'call-without-frame-pointer':
    'set up the frame before the first call (FRAME_BEGIN in the kernel, -fno-omit-frame-pointer)',
  'frame-pointer-not-restored': 'restore the frame pointer on every way out (leave, or pop it)',
  'register-not-restored': 'restore what the caller keeps in callee-saved registers before every return',
  'stack-not-restored': 'undo every change of the stack pointer before the return',
  'falls-through': 'end the function with a return, a jump or a trap; mark functions that never return',
  'unreachable-code': 'remove it, or make known what leads there (a jump table with relocations, a symbol)',
  'call-to-unmarked-code':
    'mark the callee as a function (.type name, @function; SYM_FUNC_START in the kernel)',
  'sources-disagree': 'see which of the two the instructions contradict, and correct that one',
};

export function makeFinding(
  code: FindingCode,
  message: string,
  more: Partial<
    Pick<Finding, 'source' | 'place' | 'from' | 'claimed' | 'derived' | 'repeats' | 'remedy'>
  > = {},
): Finding {
  return {
    code,
    level: FINDING_CODES[code],
    source: more.source,
    place: more.place,
    from: more.from,
    message,
    claimed: more.claimed,
    derived: more.derived,
    remedy: more.remedy ?? REMEDIES[code],
    repeats: more.repeats ?? 0,
  };
}

/** One line of a suppression file: `code function [# why]`; `*` stands for any text, in both. */
export interface Suppression {
  readonly code: RegExp;
  readonly function: RegExp;
  /** What its comment says. */
  readonly why?: string;
}

/** A finding that is not reported as one, and by whose word. */
export interface SuppressedFinding {
  readonly finding: Finding;
  /** `inSource`: by the author of the code (`STACK_FRAME_NON_STANDARD`); `external`: by a {@link Suppression}. SARIF 3.35.2. */
  readonly kind: 'inSource' | 'external';
  readonly why: string | undefined;
}

/** Throws a RangeError that names the line when one can't be read. */
export function parseSuppressions(text: string): readonly Suppression[] {
  const suppressions: Suppression[] = [];
  text.split('\n').forEach((line, i) => {
    const [, rule = '', comment = ''] = /^([^#]*)#?(.*)$/.exec(line) ?? [];
    const words = rule.trim().split(/\s+/);
    if (words[0] === '') return;
    const [code, name] = words;
    if (words.length !== 2 || code === undefined || name === undefined) {
      throw new RangeError(`line ${i + 1}: expected "code function", found "${line.trim()}"`);
    }
    const codes = globToRegExp(code);
    if (!Object.keys(FINDING_CODES).some((each) => codes.test(each)))
      throw new RangeError(`line ${i + 1}: no finding has code "${code}"`);
    const why = comment.trim();
    suppressions.push({ code: codes, function: globToRegExp(name), ...(why !== '' && { why }) });
  });
  return suppressions;
}

/**
 * What stands between two stars is taken at the first place that it has: any other choice leaves less for what follows. Groups that are
 * not gone back into (lookahead and back reference) say so, else a pattern of many stars would take forever to fail.
 */
function globToRegExp(glob: string): RegExp {
  const [head = '', ...rest] = glob.split('*').map((text) => text.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  const tail = rest.pop();
  if (tail === undefined) return new RegExp(`^${head}$`, 's');
  const inner = rest.filter((text) => text !== '').map((text, i) => `(?=(.*?${text}))\\${i + 1}`);
  // A digit behind a reference would be part of its number, but what follows one is always a parenthesis or a dot.
  return new RegExp(`^${head}${inner.join('')}.*${tail}$`, 's');
}

/** Takes the findings apart: those that count, and those of exempt functions or that a suppression names. */
export function sortOut(
  findings: readonly Finding[],
  exempt: ReadonlySet<string>,
  suppressions: readonly Suppression[],
): { readonly kept: readonly Finding[]; readonly suppressed: readonly SuppressedFinding[] } {
  if (exempt.size === 0 && suppressions.length === 0) return { kept: findings, suppressed: [] };
  const kept: Finding[] = [];
  const suppressed: SuppressedFinding[] = [];
  for (const finding of findings) {
    const name = finding.place?.function;
    const by = suppressions.find((s) => s.code.test(finding.code) && s.function.test(name ?? ''));
    if (name !== undefined && exempt.has(name))
      suppressed.push({ finding, kind: 'inSource', why: 'STACK_FRAME_NON_STANDARD' });
    else if (by !== undefined) suppressed.push({ finding, kind: 'external', why: by.why });
    else kept.push(finding);
  }
  return { kept, suppressed };
}
