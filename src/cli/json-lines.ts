import { hex } from '../base/brand.js';
import { expectNever } from '../base/errors.js';
import type { TransitionResult } from '../engine/events.js';
import type { ReportedFrame, StragglerReason } from '../engine/target.js';
import type { StragglerReport } from '../targets/straggler-report.js';
import type { GuestStops } from './kernel-operations.js';
import type { OperationEvent } from './operations.js';
import type { JsonBody } from './output.js';

/** The `--json` line of an event. */
export function eventLine(event: OperationEvent): JsonBody {
  switch (event.kind) {
    case 'step':
      return { event: 'step', step: event.step, detail: event.detail };
    case 'notice':
      return { event: 'notice', text: event.text };
    case 'object': {
      const { change, patch, object, detail, atMs } = event;
      return { event: 'object', change, patch, object, detail: detail ?? null, atMs };
    }
    case 'started':
      return { event: 'started', direction: event.direction, model: event.model, tasks: event.tasks };
    case 'taskSwitched':
      return {
        event: 'taskSwitched',
        task: event.task,
        name: event.name,
        attempts: event.attempts,
        atMs: event.atMs,
      };
    case 'taskWaiting':
      return {
        event: 'taskWaiting',
        task: event.task,
        name: event.name,
        attempts: event.attempts,
        reason: reasonJson(event.reason),
        atMs: event.atMs,
      };
    case 'taskCreated':
      return {
        event: 'taskCreated',
        task: event.task,
        name: event.name,
        state: event.state,
        atMs: event.atMs,
      };
    case 'taskExited':
      return { event: 'taskExited', task: event.task, atMs: event.atMs };
    case 'callback':
      return {
        event: 'callback',
        object: event.object,
        callback: event.callback,
        failure: event.failure ?? null,
        atMs: event.atMs,
      };
    case 'reversing':
      return { event: 'reversing', direction: event.direction, why: event.why, atMs: event.atMs };
    case 'progress':
      return { event: 'progress', switched: event.switched, total: event.total, atMs: event.atMs };
    case 'finished':
      return { event: 'finished', direction: event.direction, atMs: event.atMs };
    default:
      return expectNever(event, 'event');
  }
}

export function resultLine(
  patch: { readonly id: string; readonly name: string },
  result: TransitionResult,
  guest?: GuestStops,
): JsonBody {
  const common = { event: 'transition' as const, patch: { ...patch } };
  const stops = guest && { guest: { ...guest, phases: guest.phases.map((phase) => ({ ...phase })) } };
  if (result.kind === 'complete') return { ...common, result: { ...result }, ...stops };
  const stragglers = result.stragglers.map((s) => ({
    ...s,
    task: s.task as string,
    reason: reasonJson(s.reason),
  }));
  return { ...common, result: { ...result, stragglers }, ...stops };
}

export function stragglerJson(report: StragglerReport) {
  return {
    ...report,
    since: report.since ?? null,
    reason: report.reason === undefined ? null : reasonJson(report.reason),
    frames: report.frames.map(frameJson),
    blockingFrame: report.blockingFrame ?? null,
  };
}

type ReasonJson = Extract<JsonBody, { event: 'taskWaiting' }>['reason'];

function reasonJson(reason: StragglerReason): ReasonJson {
  switch (reason.kind) {
    case 'busy':
    case 'unreliable':
      return { ...reason, frames: reason.frames.map(frameJson) };
    default:
      return { ...reason };
  }
}

function frameJson(frame: ReportedFrame) {
  return { address: hex(frame.address), symbol: frame.symbol ?? null, module: frame.module ?? null };
}
