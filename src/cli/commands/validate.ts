import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import {
  type ClaimSource,
  type Finding,
  type FindingPlace,
  parseSuppressions,
} from '../../validate/findings.js';
import { describePlace } from '../../validate/places.js';
import { VALIDATE_EXIT } from '../conventions.js';
import type { Output } from '../output.js';
import { toSarif } from '../sarif.js';
import type { FileReport, ValidateJob } from '../validate-files.js';
import { validateFiles } from '../validate-pool.js';
import { ValidateProgress } from '../validate-progress.js';

export interface ValidateCommandOptions {
  readonly dwarf?: boolean;
  readonly orc?: boolean;
  readonly framePointer?: boolean;
  readonly agree: readonly (readonly [ClaimSource, ClaimSource])[];
  readonly suppress?: string;
  readonly sarif?: string;
  readonly kernelRelease?: string;
  readonly threads?: number;
  readonly keep: boolean;
  readonly notes?: boolean;
}

/** Validates files; returns the exit code: 0 clean, 1 findings, 2 a file could not be read. */
export async function validate(
  files: readonly string[],
  options: ValidateCommandOptions,
  output: Output,
): Promise<number> {
  if (options.sarif === '-' && output.isJson) {
    throw new LivegraftError('two-outputs', '--json and --sarif - both write to the standard output', {
      remedy: 'give --sarif a file',
    });
  }
  const job = makeJob(options);
  const reports: FileReport[] = [];
  const started = performance.now();
  const progress = new ValidateProgress(output);
  await validateFiles(files, job, options.threads ?? availableParallelism(), {
    onStart: (sized) => progress.start(sized),
    onProgress: (file, fraction) => progress.advance(file, fraction),
    onReport(report) {
      reports.push(report);
      progress.finish(report.file);
    },
  });
  progress.clear();
  const order = new Map(files.map((file, i) => [file, i]));
  reports.sort((a, b) => (order.get(a.file) ?? 0) - (order.get(b.file) ?? 0));
  // A log on the standard output has it for itself.
  const isTextWanted = options.sarif !== '-';
  for (const report of reports) showReport(report, output, options.notes === true, isTextWanted);
  warnOfProofs(reports, output);
  if (options.sarif !== undefined) writeSarif(options.sarif, reports, output);
  const summary = summarize(reports);
  output.json({ event: 'validateSummary', ...summary, durationMs: performance.now() - started });
  if (files.length > 1 && isTextWanted) {
    output.text(
      `${summary.files} files, ${summary.instructions} instructions: ${summary.errors} errors, ${summary.warnings} warnings, ` +
        `${summary.notes} notes, ${summary.suppressed} suppressed, ${summary.unreadable} unreadable`,
    );
  }
  if (summary.unreadable > 0) return VALIDATE_EXIT.unreadable;
  return summary.errors + summary.warnings > 0 ? VALIDATE_EXIT.findings : VALIDATE_EXIT.clean;
}

function makeJob(options: ValidateCommandOptions): ValidateJob {
  const sources: ClaimSource[] = [];
  if (options.dwarf === true) sources.push('dwarf', 'debug-frame');
  if (options.orc === true) sources.push('orc');
  if (options.framePointer === true) sources.push('frame-pointer');
  let suppressions = '';
  if (options.suppress !== undefined) {
    try {
      suppressions = readFileSync(options.suppress, 'utf8');
      parseSuppressions(suppressions);
    } catch (cause) {
      throw new LivegraftError(
        'suppressions-unreadable',
        `${options.suppress} can't be read: ${(cause as Error).message}`,
        {
          remedy:
            'one suppression a line: the code and the function, "*" for any text in both, "#" for comments',
          cause,
        },
      );
    }
  }
  return {
    sources: sources.length > 0 || options.agree.length > 0 ? sources : undefined,
    agree: options.agree,
    suppressions,
    kernelRelease: options.kernelRelease,
    keepsProofs: options.keep,
  };
}

function summarize(reports: readonly FileReport[]) {
  const validated = reports.flatMap((report) => (report.kind === 'validated' ? [report] : []));
  const findings = validated.flatMap((report) => report.findings);
  const count = (level: string) => findings.filter((f) => f.level === level).length;
  const sum = (of: (report: (typeof validated)[number]) => number) =>
    validated.reduce((n, report) => n + of(report), 0);
  return {
    files: reports.length,
    unreadable: reports.length - validated.length,
    errors: count('error'),
    warnings: count('warning'),
    notes: count('note'),
    suppressed: sum((report) => report.suppressed.length),
    textBytes: sum((report) => report.textBytes),
    instructions: sum((report) => report.instructions),
  };
}

/** Once for all files: where one can't be written, none can. */
function warnOfProofs(reports: readonly FileReport[], output: Output): void {
  const failed = reports.flatMap((report) =>
    report.kind === 'validated' ? (report.proofProblem ?? []) : [],
  );
  const [first] = failed;
  if (first === undefined || output.isJson) return;
  const more = failed.length > 1 ? ` (and ${failed.length - 1} more)` : '';
  output.io.err(`${output.errorColors.yellow('the proof is not kept:')} ${first.message}${more}\n`);
  if (first.remedy !== undefined) output.io.err(`  what to do: ${first.remedy}\n`);
}

function showReport(report: FileReport, output: Output, withNotes: boolean, isTextWanted: boolean): void {
  const { bold, red, yellow, dim } = output.colors;
  if (report.kind === 'unreadable') {
    const { file, code, message, remedy } = report;
    output.json({ event: 'unreadable', file, code, message, remedy: remedy ?? null });
    if (output.isJson) return;
    output.io.err(`${output.errorColors.red('unreadable:')} ${message}\n`);
    if (remedy !== undefined) output.io.err(`  what to do: ${remedy}\n`);
    return;
  }
  output.json({
    event: 'validated',
    file: report.file,
    buildId: report.buildId ?? null,
    proof: report.proof,
    sources: report.sources.map(({ source, counts }) => ({ source, ...counts })),
    textBytes: report.textBytes,
    instructions: report.instructions,
    suppressed: report.suppressed.length,
    findings: report.findings.map(toJson),
  });
  if (!isTextWanted) return;
  const shown = report.findings.filter((f) => withNotes || f.level !== 'note');
  for (const f of shown) {
    const color = f.level === 'error' ? red : f.level === 'warning' ? yellow : dim;
    const where =
      f.place === undefined
        ? ''
        : ` ${bold(describePlace(f.place))} (${f.place.section} ${hex(f.place.address)})${inSource(f.place)}`;
    output.text(`${report.file}:${where} ${color(`${f.level} ${f.code}`)} ${f.message}`);
    if (f.from !== undefined)
      output.text(
        dim(`    reached from ${describePlace(f.from)} (${hex(f.from.address)})${inSource(f.from)}`),
      );
    if (f.claimed !== undefined) output.text(dim(`    claimed: ${f.claimed}`));
    if (f.derived !== undefined) output.text(dim(`    derived: ${f.derived}`));
    if (f.repeats > 0) output.text(dim(`    and ${f.repeats} more of it in this function`));
    output.text(dim(`    what to do: ${f.remedy}`));
  }
  const hidden = report.findings.length - shown.length;
  if (hidden > 0)
    output.text(
      dim(
        `${report.file}: ${hidden === 1 ? '1 note (--notes shows it)' : `${hidden} notes (--notes shows them)`}`,
      ),
    );
  for (const { source, counts } of report.sources) {
    const { proven, assumed, unknown, disproved, unclaimed } = counts;
    output.text(
      `${report.file}: ${source}: ${proven} instructions proven, ${assumed} assumed, ${unknown} unknown, ` +
        `${disproved} disproved, ${unclaimed} without a row`,
    );
  }
  if (report.proof === 'no-build-id' && withNotes)
    output.text(`${report.file}: no proof is kept of a file without build-id (link with --build-id)`);
  if (report.sources.length === 0) output.text(`${report.file}: has no unwind table that was asked for`);
}

function inSource({ line }: FindingPlace): string {
  return line === undefined ? '' : ` at ${line.file}:${line.line}`;
}

function toJson(finding: Finding) {
  const { code, level, source, message, claimed, derived, remedy, repeats, place, from } = finding;
  const at = (where: FindingPlace | undefined) =>
    where === undefined
      ? null
      : {
          section: where.section,
          address: hex(where.address),
          function: where.function ?? null,
          functionOffset: where.functionOffset ?? null,
          file: where.line?.file ?? null,
          line: where.line?.line ?? null,
          column: where.line?.column ?? null,
        };
  return {
    code,
    level,
    source: source ?? null,
    message,
    claimed: claimed ?? null,
    derived: derived ?? null,
    remedy,
    repeats,
    place: at(place),
    from: at(from),
  };
}

function writeSarif(path: string, reports: readonly FileReport[], output: Output): void {
  const text = `${JSON.stringify(toSarif(reports), undefined, 1)}\n`;
  if (path === '-') {
    output.io.out(text);
    return;
  }
  try {
    writeFileSync(path, text);
  } catch (cause) {
    throw new LivegraftError('sarif-not-written', `${path} can't be written: ${(cause as Error).message}`, {
      remedy: 'give another path, or - for the standard output',
      cause,
    });
  }
}
