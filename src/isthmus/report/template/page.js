"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    displaylogo: false,
    displayModeBar: false,
    scrollZoom: false,
    doubleClick: false,
    showTips: false,
  };
  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element,
    figures: JSON.parse(document.getElementById(element.dataset.figure).textContent),
  }));

  function draw(mode) {
    for (const { element, figures } of plots) {
      const { data, layout } = figures[mode];
      Plotly.react(element, data, layout, config).catch((error) => {
        element.textContent = `This plot could not be drawn (${error}); its data are in the table below.`;
      });
    }
  }
  const current = () => (dark.matches ? "dark" : "light");

  draw(current());
  // Plotly's own `responsive` waits for a pause; a page that is turned or printed has none.
  const sizes = new Map();
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const size = `${target.clientWidth}x${target.clientHeight}`;
      if (sizes.has(target) && sizes.get(target) !== size) Plotly.relayout(target, { autosize: true });
      sizes.set(target, size);
    }
  });
  for (const { element } of plots) {
    sizes.set(element, `${element.clientWidth}x${element.clientHeight}`);
    watch.observe(element);
  }
  dark.addEventListener("change", () => draw(current()));
  window.addEventListener("beforeprint", () => draw("light"));
  window.addEventListener("afterprint", () => draw(current()));
})();
