import { describe, expect, it } from 'vitest';
import { createOutput } from './output.js';
import { ValidateProgress } from './validate-progress.js';

const MIB = 1024 * 1024;

function drawn(isErrorTerminal: boolean, run: (progress: ValidateProgress) => void, tickMs = 100): string[] {
  let text = '';
  const io = {
    out: () => {},
    err: (more: string) => {
      text += more;
    },
    // What the results go to does not matter.
    isTerminal: !isErrorTerminal,
    errorColumns: isErrorTerminal ? 60 : undefined,
    columns: 10,
    rows: 24,
    noColor: true,
    onInterrupt: () => () => {},
    onReverse: () => () => {},
  };
  let nowMs = 0;
  run(new ValidateProgress(createOutput(io, {}), () => (nowMs += tickMs)));
  return text.split('\r\x1b[K').slice(1);
}

const FILES = [
  { file: '/boot/vmlinuz', sizeBytes: 6 * MIB },
  { file: '/lib/a.ko', sizeBytes: 2 * MIB },
];

describe('progress of validate', () => {
  it('moves while one large file is read, by bytes, and is gone at the end', () => {
    const lines = drawn(true, (progress) => {
      progress.start(FILES);
      progress.advance('/boot/vmlinuz', 0.5);
      progress.finish('/lib/a.ko');
      progress.finish('/boot/vmlinuz');
      progress.clear();
    });
    expect(lines).toEqual([
      '[------------------------] 0 % 0/2 ',
      '[#########---------------] 37 % 0/2 vmlinuz',
      '[###############---------] 62 % 1/2 a.ko',
      '[########################] 100 % 2/2 vmlinuz',
      '',
    ]);
  });

  it('draws no more often than anybody can see, but the end', () => {
    const lines = drawn(
      true,
      (progress) => {
        progress.start(FILES);
        for (let i = 1; i <= 100; i++) progress.advance('/boot/vmlinuz', i / 100);
        for (const { file } of FILES) progress.finish(file);
      },
      1,
    );
    expect(lines.length).toBeLessThan(6);
    expect(lines.at(-1)).toContain('100 % 2/2');
  });

  it('draws nothing where the standard error is no terminal, though the output is one', () => {
    expect(drawn(false, (progress) => progress.start(FILES))).toEqual([]);
  });
});
