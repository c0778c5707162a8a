// Draws every figure of the page in its place.
async function draw(data) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  for (const [name, light] of Object.entries(data.figures)) {
    const element = document.getElementById(`figure-${name}`);
    let text = JSON.stringify(light);
    if (dark) {
      for (const [day, night] of Object.entries(data.on_dark)) text = text.replaceAll(day, night);
    }
    const figure = JSON.parse(text);
    const layout = {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      font: { ...figure.layout.font, color: dark ? "#e7ebf0" : "#1a212b" },
      width: element.clientWidth,
      dragmode: false,
    };
    await Plotly.newPlot(element, figure.data, layout, { displayModeBar: false });
  }
}
