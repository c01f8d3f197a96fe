// Gives the plotly figures of a page the page's colours, light or dark, and follows a change.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => document.querySelectorAll(".plot .js-plotly-plot").forEach((plot) => {
    const ink = dark.matches ? "#e9ebee" : "#1b1d21", line = dark.matches ? "#343840" : "#e2e4e8";
    const change = { "font.color": ink, "font.family": "system-ui, sans-serif", "legend.bgcolor": "rgba(0,0,0,0)" };
    for (const axis of Object.keys(plot.layout).filter((key) => /^[xy]axis/.test(key))) {
      for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) change[`${axis}.${part}`] = line;
    }
    Plotly.relayout(plot, change);
  });
  paint();
  dark.addEventListener("change", paint);
})();
