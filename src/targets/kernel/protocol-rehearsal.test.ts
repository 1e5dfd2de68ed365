import { expect, it, vi } from 'vitest';
import { GdbClient } from './gdb-client.js';
import { rehearseProtocol } from './protocol-rehearsal.js';

/** What keeps a process from ending, of connections. */
const connections = () => process.getActiveResourcesInfo().filter((name) => name.startsWith('Pipe'));

it('closes its connection when it fails: the command would never end', async () => {
  const before = connections();
  const failing = vi.spyOn(GdbClient.prototype, 'insertBreakpoints').mockRejectedValue(new Error('failing'));
  await rehearseProtocol();
  expect(failing).toHaveBeenCalledOnce();
  failing.mockRestore();
  await expect.poll(connections).toEqual(before);
});
