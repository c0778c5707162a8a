// Draws one ColoredTokens component for each prompt.
async function draw(data) {
  const place = document.getElementById("views");
  data.views.forEach((view, i) => {
    const section = document.createElement("section");
    const label = document.createElement("h2");
    label.textContent = view.label;
    const root = document.createElement("div");
    root.id = `view-${i}`;
    section.append(label, root);
    place.append(section);
    CircuitsVis.render(root.id, CircuitsVis.ColoredTokens, view.props);
    finishTokens(root, view.props.tokens.length, view.absent);
  });
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
}
