import { connect } from 'node:net';

/** How long nothing more must come before a reply counts as whole: one that breaks the protocol has no other end. */
const QUIET_MS = 120;

/** Sends one command in redis' protocol and returns all that comes back, as it is. */
export function command(port: number, ...words: readonly (string | Uint8Array)[]): Promise<string> {
  const parts = words.map((word) => (typeof word === 'string' ? Buffer.from(word) : word));
  const request = Buffer.concat([
    Buffer.from(`*${parts.length}\r\n`),
    ...parts.flatMap((part) => [Buffer.from(`$${part.length}\r\n`), part, Buffer.from('\r\n')]),
  ]);
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(request));
    let text = '';
    let quiet: NodeJS.Timeout | undefined;
    socket.setTimeout(20_000, () => socket.destroy(new Error(`no answer to ${words[0]}`)));
    socket.on('data', (data) => {
      text += data.toString('latin1');
      clearTimeout(quiet);
      quiet = setTimeout(() => socket.destroy(), QUIET_MS);
    });
    socket.on('close', () => resolve(text));
    socket.on('error', reject);
  });
}
