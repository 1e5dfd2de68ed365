import { expect, it } from 'vitest';
import { layoutOf } from '../../../test/support/btf-layout.js';

const SOURCE = `
struct held { char a; /* 1..7 */ long b; };
struct fields { unsigned a : 3; /* 4..7 */ long b; char c; /* 17..23 */ long d; };
struct unnamed { long a; struct { char b; /* 9..15 */ long c; }; };
struct shared { long a; union { char b; long c; }; int d; int e; };
struct tail { long a; char b; };
struct nested { struct held h; int a; int b; };
struct held v1; struct fields v2; struct unnamed v3; struct shared v4; struct tail v5; struct nested v6;
`;

it('finds padding between members, and none where a member may be written', () => {
  const layout = layoutOf(SOURCE);
  const offsets = Object.fromEntries(
    ['held', 'fields', 'unnamed', 'shared', 'tail', 'nested', 'absent'].map((name) => [
      name,
      layout.findPadding(name, 4)?.offset,
    ]),
  );
  expect(offsets).toEqual({
    held: 4,
    fields: 20,
    unnamed: 12,
    shared: undefined,
    tail: undefined,
    nested: undefined,
    absent: undefined,
  });
});
