import { closeSync, openSync, readFileSync, readSync } from 'node:fs';

/** The vDSO that the running kernel gave this process. */
export function readVdso(): Uint8Array {
  const range = /^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$/m.exec(readFileSync('/proc/self/maps', 'utf8'));
  if (range === null) throw new Error('this process has no vDSO');
  const [start, end] = [range[1], range[2]].map((text) => Number.parseInt(text ?? '', 16)) as [
    number,
    number,
  ];
  const bytes = new Uint8Array(end - start);
  const memory = openSync('/proc/self/mem', 'r');
  try {
    if (readSync(memory, bytes, 0, bytes.length, start) !== bytes.length)
      throw new Error('the vDSO was cut off');
  } finally {
    closeSync(memory);
  }
  return bytes;
}
