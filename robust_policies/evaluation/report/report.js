"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, scrollZoom: false,
    displayModeBar: coarse ? false : "hover",
    modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  let ready = false;
  const hidden = new Set();
  // What is folded away has no width yet, and is drawn when it is unfolded.
  const folded = (plot) => plot.closest("details:not([open])") !== null;
  const todo = [];
  const show = (plot) => {
    const panel = charts[plot.dataset.chart][Number(plot.dataset.panel)];
    // A finger scrolls the page; dragging a picture would catch it.
    const layout = coarse ? { ...panel.layout, dragmode: false } : panel.layout;
    plot.replaceChildren();
    return Plotly.newPlot(plot, panel.data, layout, config).then(() => {
      const figure = plot.closest("figure");
      if (!figure.querySelector(".plot:not(.js-plotly-plot)")) figure.classList.add("drawn");
    });
  };
  const next = () => {
    const plot = todo.shift();
    if (!plot) { document.documentElement.dataset.drawn = "all"; return; }
    show(plot).then(() => setTimeout(next), (error) => { console.error(error); setTimeout(next); });
  };
  const apply = () => {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const visible = plot.data.map((trace) => !hidden.has(trace.name));
      Plotly.restyle(plot, { visible });
    }
    for (const button of document.querySelectorAll(".legend button")) {
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.name)));
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".legend button");
    if (!button) return;
    const name = button.dataset.name;
    if (!hidden.delete(name)) hidden.add(name);
    apply();
  });
  document.addEventListener("toggle", (event) => {
    if (!ready) return;
    for (const plot of event.target.querySelectorAll(".plot:not(.js-plotly-plot)")) {
      if (!folded(plot)) show(plot).then(apply);
    }
  }, true);
  const hints = () => {
    for (const table of document.querySelectorAll(".scroll")) {
      table.parentElement.querySelector(".hint").hidden = table.scrollWidth <= table.clientWidth + 1;
    }
  };
  addEventListener("resize", hints);
  document.addEventListener("toggle", hints, true);
  hints();
  // The library is compressed. A browser that cannot unpack it shows the still pictures.
  const library = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  library().then(() => {
    ready = true;
    todo.push(...Array.from(document.querySelectorAll(".plot")).filter((plot) => !folded(plot)));
    document.documentElement.classList.add("live");
    next();
  }, (error) => { document.documentElement.dataset.drawn = "none"; });
})();
