"use strict";
// The page's own script in Node, with as much of a document as it asks for; the page's parts come by stdin.
const page = JSON.parse(require("fs").readFileSync(0, "utf8"));
const found = { drawn: [], restyled: [], errors: [], library: 0, pressed: {} };
const listeners = [];
const figure = { drawn: false, classList: { add: () => { figure.drawn = true; } } };
const plots = page.plots.map((one) => {
  const plot = { dataset: { chart: one.chart, panel: String(one.panel) }, data: null, still: true };
  plot.closest = (selector) => selector === "figure" ? figure : one.folded && !plot.open ? {} : null;
  plot.replaceChildren = () => { plot.still = false; };
  return plot;
});
figure.querySelector = () => plots.find((plot) => !plot.data) ?? null;
const buttons = page.names.map((name) => {
  const button = { dataset: { name }, setAttribute: (key, value) => { found.pressed[name] = value; } };
  button.closest = () => button;
  return button;
});
const root = { dataset: {}, classList: { add: (name) => { root.live = name === "live"; } } };
globalThis.document = {
  documentElement: root,
  getElementById: (id) => ({ textContent: page[id] }),
  createElement: () => ({}),
  head: { append: (script) => {
    found.library = script.textContent.length;
    found.same = require("crypto").createHash("sha256").update(script.textContent).digest("hex") === page.sha256;
  } },
  addEventListener: (kind, heard) => listeners.push([kind, heard]),
  querySelectorAll: (selector) => selector.startsWith(".plot") ? plots
    : selector === ".js-plotly-plot" ? plots.filter((plot) => plot.data) : selector === ".legend button" ? buttons : [],
};
globalThis.matchMedia = () => ({ matches: false });
globalThis.addEventListener = () => {};
console.error = (error) => found.errors.push(String(error));
globalThis.Plotly = {
  newPlot: async (plot, data, layout, config) => {
    plot.data = data;
    found.drawn.push([plot.dataset.chart, plot.dataset.panel, data.length, Object.keys(layout).length, config.responsive]);
  },
  restyle: (plot, change) => found.restyled.push(change.visible),
};
const wait = async (until) => { while (!until()) await new Promise((done) => setTimeout(done, 5)); };
(async () => {
  eval(page.script);
  await wait(() => root.dataset.drawn);
  found.outcome = root.dataset.drawn;
  found.live = root.live === true;
  if (found.outcome === "all") {
    found.before_unfolding = found.drawn.length;
    const closed = plots.filter((plot) => !plot.data);
    for (const plot of closed) plot.open = true;
    const target = { querySelectorAll: () => closed };
    for (const [kind, heard] of listeners) if (kind === "toggle") heard({ target });
    await wait(() => plots.every((plot) => plot.data));
    found.restyled.length = 0;
    for (const [kind, heard] of listeners) if (kind === "click") heard({ target: buttons[0] });
  }
  found.still = plots.filter((plot) => plot.still).length;
  process.stdout.write(JSON.stringify(found));
})();
