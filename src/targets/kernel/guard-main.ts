import { parseGdbEndpoint } from './gdb-connection.js';
import { guardGuest } from './guard-process.js';

/** The program that `guest-guard.ts` starts. */
const endpoint = parseGdbEndpoint(process.argv[2] ?? '');
if (endpoint !== undefined) void guardGuest(process.stdin, endpoint);
