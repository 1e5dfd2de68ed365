import { createHash } from 'node:crypto';
import { validateInput } from '../../src/cli/validate-files.js';
import { Scratch } from '../../src/validate/scratch.js';

/**
 * `npm run -s verdicts -- FILE…`: one line a file, with digests of all that `validate` says of it. Run before and after a
 * change that must not change results, and compare: the verdict on every instruction, and every finding with its text.
 */
const MODES = [
  { name: 'default', sources: undefined, agree: [] },
  { name: 'frame-pointer', sources: ['frame-pointer'], agree: [] },
] as const;

const scratch = new Scratch();
for (const file of process.argv.slice(2)) {
  for (const { name, sources, agree } of MODES) {
    const job = { sources, agree, suppressions: '', kernelRelease: undefined, keepsProofs: false };
    const result = validateInput(file, job, scratch);
    const { table } = result.program;
    const verdicts = createHash('sha256');
    for (const column of [table.offsets, table.lengths, table.flows, table.targets])
      verdicts.update(column.subarray(0, table.count));
    for (const { source, statuses } of result.sources) verdicts.update(source).update(statuses);
    const findings = createHash('sha256').update(JSON.stringify(result.findings));
    const counts = result.sources.map(({ source, counts: of }) => `${source} ${Object.values(of).join('/')}`);
    console.log(
      [
        file,
        name,
        `${result.instructions} instructions`,
        ...counts,
        `${result.findings.length} findings`,
        `jump tables ${result.jumpTables.followed}/${result.jumpTables.notFollowed}`,
        `verdicts ${verdicts.digest('hex').slice(0, 16)}`,
        `findings ${findings.digest('hex').slice(0, 16)}`,
      ].join(', '),
    );
  }
}
