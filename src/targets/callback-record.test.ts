import { describe, expect, it } from 'vitest';
import { CALLBACK_BEGUN, encodeCallbackRecord, isVeto, parseCallbackRecord } from './callback-record.js';

describe('the record of callbacks', () => {
  it('is read as it was written; zeros are an object whose callbacks have not run', () => {
    for (const kind of ['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch', undefined] as const) {
      for (const stage of ['none', 'prePatched', 'postPatched', 'preUnpatched'] as const) {
        const record = { phase: CALLBACK_BEGUN, result: -19, kind, stage };
        expect(parseCallbackRecord(encodeCallbackRecord(record))).toEqual(record);
      }
    }
    const fresh = { phase: 0, result: 0, kind: undefined, stage: 'none' };
    expect(parseCallbackRecord(new Uint8Array(16))).toEqual(fresh);
    expect(encodeCallbackRecord(parseCallbackRecord(new Uint8Array(16).fill(0xff)))).toHaveLength(16);
  });

  it('only what a pre-patch callback returns is a veto', () => {
    expect([isVeto('prePatch', 0), isVeto('prePatch', -1), isVeto('postPatch', -1)]).toEqual([
      ...[false, true, false],
    ]);
  });
});
