import { styleText } from 'node:util';

type Style = 'bold' | 'dim' | 'green' | 'red' | 'yellow';
/** Each makes a text appear in its style, or leaves it as it is where there are to be no colours. */
export type Colors = Readonly<Record<Style, (text: string) => string>>;

export function createColors(enabled: boolean): Colors {
  // Whether the stream shows colours has been found out by the caller.
  const style = (name: Style) => (text: string) =>
    enabled ? styleText(name, text, { validateStream: false }) : text;
  return {
    bold: style('bold'),
    dim: style('dim'),
    green: style('green'),
    red: style('red'),
    yellow: style('yellow'),
  };
}
