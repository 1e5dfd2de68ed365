import type { OperationEvent } from './operations.js';
import type { Output } from './output.js';
import { reasonText } from './reason-text.js';

/** Shows a transition while it runs. */
export interface TransitionView {
  note(event: OperationEvent): void;
  /** Draws the last state and leaves it there. Safe to call twice. */
  end(): void;
}

export function createTransitionView(
  output: Output,
  nowMs: () => number = () => performance.now(),
): TransitionView {
  return output.isLive ? new LiveView(output, nowMs) : new PlainView(output);
}

function objectText(event: Extract<OperationEvent, { kind: 'object' }>): string {
  const { change, patch, object, detail } = event;
  switch (change) {
    case 'patched':
      return `${object} was loaded, and is patched by ${patch}`;
    case 'left':
      return `${object} has been unloaded: ${patch} is pending for it again`;
    case 'refused':
      return `${object} was loaded, and is not patched by ${patch}: ${detail ?? '?'}`;
  }
}

/** Off a terminal: milestones, and each reason of a thread once. */
class PlainView implements TransitionView {
  readonly #output: Output;
  readonly #reported = new Set<string>();

  constructor(output: Output) {
    this.#output = output;
  }

  note(event: OperationEvent): void {
    switch (event.kind) {
      case 'step':
        this.#output.text(`${event.step}: ${event.detail}`);
        return;
      case 'notice':
        this.#output.text(`note: ${event.text}`);
        return;
      case 'object':
        this.#output.text(`object: ${objectText(event)}`);
        return;
      case 'callback':
        this.#output.text(`callback ${event.callback} of ${event.object}: ${event.failure ?? 'done'}`);
        return;
      case 'reversing':
        this.#output.text(`reversing: ${event.why}`);
        return;
      case 'taskWaiting': {
        const text =
          event.reason.kind === 'busy' ? `busy in ${event.reason.function}` : reasonText(event.reason);
        // A thread that goes from call to call is met at other addresses, unreliable for one cause.
        const key = `${event.task} ${event.reason.kind === 'unreliable' ? event.reason.cause : text}`;
        if (this.#reported.has(key)) return;
        this.#reported.add(key);
        this.#output.text(`waiting for thread ${event.task} (${event.name}): ${text}`);
        return;
      }
      default:
        return;
    }
  }

  end(): void {}
}

interface Row {
  readonly task: string;
  readonly name: string;
  state: string;
  isDone: boolean;
}

const REDRAW_MS = 50;

/** One line a thread, redrawn in place; stragglers first, the rest folded into a count when the screen is small. */
class LiveView implements TransitionView {
  readonly #output: Output;
  readonly #nowMs: () => number;
  readonly #rows = new Map<string, Row>();
  #drawnLines = 0;
  #drawnAtMs = Number.NEGATIVE_INFINITY;
  #ended = false;

  constructor(output: Output, nowMs: () => number) {
    this.#output = output;
    this.#nowMs = nowMs;
  }

  note(event: OperationEvent): void {
    const { green, yellow, dim } = this.#output.colors;
    switch (event.kind) {
      case 'step':
        this.#above(`${dim(event.step)} ${event.detail}`);
        return;
      case 'notice':
        this.#above(`${yellow('note')} ${event.text}`);
        return;
      case 'object':
        this.#above(`${event.change === 'refused' ? yellow('object') : dim('object')} ${objectText(event)}`);
        return;
      case 'callback':
        this.#above(
          `${event.failure === undefined ? dim('callback') : yellow('callback')} ${event.callback} of ${event.object}: ${event.failure ?? 'done'}`,
        );
        return;
      case 'reversing':
        this.#above(`${yellow('reversing')} ${event.why}`);
        return;
      case 'taskSwitched':
        this.#set(event.task, event.name, green('switched'), true);
        return;
      case 'taskWaiting':
        this.#set(event.task, event.name, `${yellow('not yet')} ${reasonText(event.reason)}`, false);
        return;
      case 'taskCreated':
        this.#set(event.task, event.name, event.state, event.state === 'patched');
        return;
      case 'taskExited':
        this.#rows.delete(event.task);
        this.#draw(false);
        return;
      default:
        this.#draw(false);
    }
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#draw(true);
  }

  #set(task: string, name: string, state: string, isDone: boolean): void {
    this.#rows.set(task, { task, name, state, isDone });
    this.#draw(false);
  }

  #above(line: string): void {
    this.#erase();
    this.#output.text(line);
    this.#draw(true);
  }

  #draw(now: boolean): void {
    if (!now && this.#nowMs() - this.#drawnAtMs < REDRAW_MS) return;
    this.#drawnAtMs = this.#nowMs();
    this.#erase();
    const lines = this.#lines();
    for (const line of lines) this.#output.text(line);
    this.#drawnLines = lines.length;
  }

  #lines(): string[] {
    const rows = [...this.#rows.values()].sort((a, b) => Number(a.isDone) - Number(b.isDone));
    const room = Math.max(3, this.#output.io.rows - 4);
    const shown = rows.length > room ? rows.slice(0, room - 1) : rows;
    const lines = shown.map((row) =>
      clip(`${row.task.padStart(8)} ${row.name.padEnd(15)} ${row.state}`, this.#output.io.columns),
    );
    const folded = rows.length - shown.length;
    if (folded > 0) {
      const done = rows.slice(shown.length).filter((row) => row.isDone).length;
      lines.push(`         … ${folded} more threads, ${done} of them switched`);
    }
    return lines;
  }

  #erase(): void {
    if (this.#drawnLines > 0) this.#output.io.out(`\x1b[${this.#drawnLines}A\x1b[0J`);
    this.#drawnLines = 0;
  }
}

/** Cuts to the screen's width; colour codes take no room and are closed at the cut. */
function clip(line: string, columns: number): string {
  let width = 0;
  let out = '';
  for (let i = 0; i < line.length; i++) {
    if (line[i] === '\x1b') {
      const end = line.indexOf('m', i);
      if (end < 0) break;
      out += line.slice(i, end + 1);
      i = end;
      continue;
    }
    if (++width >= columns) return `${out}\x1b[0m`;
    out += line[i];
  }
  return out;
}
