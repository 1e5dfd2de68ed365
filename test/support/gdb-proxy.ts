import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';

/** Stands between livegraft and a stub, and can fail in the two ways in which a connection does. */
export interface GdbProxy {
  /** For `--gdb`. */
  readonly gdb: string;
  /** No byte passes any more, and nobody is told. */
  stall(): void;
  /** Both sides see the connection end. */
  cut(): void;
  close(): void;
}

/** `gdb`: `unix:PATH` of the stub. The proxy's own socket is put into `folder`; without one it listens on a port. */
export async function startGdbProxy(gdb: string, folder?: string): Promise<GdbProxy> {
  const sockets: Socket[] = [];
  let isStalled = false;
  const server = createServer((client) => {
    const stub = connect(gdb.replace(/^unix:/, ''));
    sockets.push(client, stub);
    for (const [from, to] of [
      [client, stub],
      [stub, client],
    ] as const) {
      from.on('error', () => {});
      from.on('close', () => to.destroy());
      from.on('data', (bytes) => {
        if (!isStalled) to.write(bytes);
      });
    }
  });
  const path = folder && join(folder, `proxy-${process.hrtime.bigint()}`);
  await new Promise<void>((resolve) => {
    if (path === undefined) server.listen(0, '127.0.0.1', resolve);
    else server.listen(path, resolve);
  });
  const cut = () => {
    for (const socket of sockets.splice(0)) socket.destroy();
  };
  return {
    gdb: path === undefined ? `127.0.0.1:${(server.address() as AddressInfo).port}` : `unix:${path}`,
    stall: () => {
      isStalled = true;
    },
    cut,
    close: () => {
      cut();
      server.close();
    },
  };
}
