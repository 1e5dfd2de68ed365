export interface CpioEntry {
  readonly path: string;
  /** `S_IFMT` bits and permissions. */
  readonly mode: number;
  readonly data?: Uint8Array;
  /** Of a device node: major and minor. */
  readonly device?: readonly [number, number];
}

/** An initramfs in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst). */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const parts: Buffer[] = [];
  let size = 0;
  const push = (bytes: Buffer) => {
    parts.push(bytes, Buffer.alloc((4 - ((size + bytes.length) % 4)) % 4));
    size += bytes.length + ((4 - ((size + bytes.length) % 4)) % 4);
  };
  const all = [...entries, { path: 'TRAILER!!!', mode: 0 } as CpioEntry];
  for (const [index, { path, mode, data, device }] of all.entries()) {
    const name = `${path}\0`;
    const fields = [
      index + 1,
      mode,
      0,
      0,
      1,
      0,
      data?.length ?? 0,
      0,
      0,
      ...(device ?? [0, 0]),
      name.length,
      0,
    ];
    push(Buffer.from(`070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}${name}`));
    if (data !== undefined) push(Buffer.from(data));
  }
  return Buffer.concat(parts);
}
