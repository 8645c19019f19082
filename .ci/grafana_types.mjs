// Writes TypeScript that gives each dashboard, and each panel's options, to Grafana's own types for them:
// `node .ci/grafana_types.mjs <folder of @grafana/schema> <file.json>… > check.ts`. .ci/grafana.sh has it compiled.
import { readFileSync } from 'node:fs';

const [schema, ...files] = process.argv.slice(2);
const modules = { timeseries: 'timeseries', heatmap: 'heatmap', stat: 'stat', 'state-timeline': 'statetimeline' };
const withoutFieldConfig = new Set(['stat']);
const raw = `${schema}/dist/types/raw`;

console.log(`import type * as dashboard from '${raw}/dashboard/x/types.gen';`);
for (const name of Object.values(modules)) {
  console.log(`import type * as ${name} from '${raw}/composable/${name}/panelcfg/x/types.gen';`);
}
// JSON has the values of TypeScript's enums, not their names.
console.log(`type Plain<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;`);

let count = 0;
function hold(type, value) {
  count += 1;
  console.log(`export const part${count}: Plain<${type}> = ${JSON.stringify(value)};`);
}

for (const file of files) {
  const { panels, ...rest } = JSON.parse(readFileSync(file, 'utf8'));
  hold('dashboard.Dashboard', rest);
  for (const panel of panels) {
    if (panel.type === 'row') {
      hold('dashboard.RowPanel', panel);
      continue;
    }
    const name = modules[panel.type];
    if (name === undefined) throw new Error(`${file}: no types are known of panels of type ${panel.type}`);
    hold('dashboard.Panel', panel);
    hold(`Partial<${name}.Options>`, panel.options);
    const custom = panel.fieldConfig?.defaults?.custom;
    if (custom !== undefined && !withoutFieldConfig.has(name)) hold(`Partial<${name}.FieldConfig>`, custom);
  }
}
