// Shows, for one expert, the tokens with its largest weights, each in its line of words.
async function draw(data) {
  const find = (id) => document.getElementById(id);
  const words = new Uint32Array(bytes(data.words).buffer), weights = bytes(data.weights);
  const pickLayer = find("s-layer"), pickExpert = find("s-expert"), list = find("lines");
  const byExpert = new Map();
  data.lines.forEach(([layer, expert], i) => {
    if (!byExpert.has(layer)) byExpert.set(layer, new Map());
    const experts = byExpert.get(layer);
    if (!experts.has(expert)) experts.set(expert, []);
    experts.get(expert).push(i);
  });
  const ascending = (keys) => [...keys].sort((a, b) => a - b);
  ascending(byExpert.keys()).forEach((layer) => option(pickLayer, layer, layer));
  find("token-scale").textContent = data.scale.toPrecision(3);

  function fillExperts(wanted) {
    const known = ascending(byExpert.get(Number(pickLayer.value)).keys());
    pickExpert.replaceChildren();
    known.forEach((expert) => option(pickExpert, expert, expert));
    if (known.includes(wanted)) pickExpert.value = wanted;
  }

  function show() {
    list.replaceChildren();
    const lines = byExpert.get(Number(pickLayer.value)).get(Number(pickExpert.value));
    lines.forEach((line, i) => {
      const tokens = [], values = [];
      for (let j = line * data.width; j < (line + 1) * data.width; j++) {
        if (words[j] === 0) continue;
        tokens.push(data.texts[words[j] - 1]);
        values.push(Number((weights[j] / 255 * data.scale).toPrecision(3)));
      }
      const middle = line * data.width + (data.width - 1) / 2;
      const item = document.createElement("li");
      const label = document.createElement("span");
      label.className = "caption";
      label.textContent = `weight ${(weights[middle] / 255 * data.scale).toPrecision(2)} at “` +
        `${data.texts[words[middle] - 1].trim()}”, ${data.prompts[data.lines[line][2]]}`;
      const root = document.createElement("div");
      root.id = `line-${i}`;
      root.className = "paper";
      item.append(label, root);
      list.append(item);
      colourTokens(root, tokens, values, data.scale);
    });
  }

  const [, layer, expert] = /^L(\d+)E(\d+)$/.exec(data.start).map(Number);
  pickLayer.value = layer;
  fillExperts(expert);
  show();
  pickLayer.addEventListener("change", () => { fillExperts(Number(pickExpert.value)); show(); });
  pickExpert.addEventListener("change", show);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
}
