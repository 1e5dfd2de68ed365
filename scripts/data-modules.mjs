import { build } from 'esbuild';

/**
 * For esbuild: modules named `*.data.ts` are run when the bundle is made, and what they export, plain data, takes their
 * place. Tables that are written for people to read are not worked out again at every start.
 */
export const dataModules = {
  name: 'data-modules',
  setup({ onLoad }) {
    onLoad({ filter: /\.data\.ts$/ }, async ({ path }) => {
      const { outputFiles } = await build({
        entryPoints: [path],
        bundle: true,
        format: 'esm',
        write: false,
        logLevel: 'warning',
      });
      const [{ text }] = outputFiles;
      const data = await import(`data:text/javascript;base64,${Buffer.from(text).toString('base64')}`);
      const lines = Object.entries(data).map(
        ([name, value]) => `export const ${name} = ${literal(value, name)};`,
      );
      return { contents: lines.join('\n'), loader: 'js' };
    });
  },
};

function literal(value, name) {
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}.of(${value.join(',')})`;
  if (Array.isArray(value)) return `[${value.map((item) => literal(item, name)).join(',')}]`;
  if (value === undefined || typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (typeof value === 'string') return JSON.stringify(value);
  throw new Error(
    `${name}: data modules export numbers, texts, typed arrays and arrays of these, not ${typeof value}`,
  );
}
