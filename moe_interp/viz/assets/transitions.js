// A map of who follows whom, and the tokens that take the way one clicks.
async function draw(data) {
  const find = (id) => document.getElementById(id);
  const pickPair = find("s-pair"), pickWhat = find("s-what");
  const pickFrom = find("s-from"), pickTo = find("s-to");
  const n = data.n_experts, share = bytes(data.share), pack = data.tokens;
  const index = pack.index_bytes === 2
    ? new Uint16Array(bytes(pack.index).buffer) : bytes(pack.index);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  data.layers.slice(1).forEach((then, i) => option(pickPair, i, `${data.layers[i]} to ${then}`));
  for (let expert = 0; expert < n; expert++) {
    option(pickFrom, expert, expert);
    option(pickTo, expert, expert);
  }
  let start = 0;
  for (const prompt of pack.prompts) {
    prompt.start = start;
    start += prompt.tokens.length;
  }
  const at = (pair, from, to) => {
    const step = share[(pair * n + from) * n + to];
    return step === 255 ? null : step / 254 * data.top;
  };
  const said = (value) => String(Number(value.toPrecision(3))).replace("-", "\u2212");
  const percent = (value) => `${(100 * value).toFixed(0)}%`;

  let turn = Promise.resolve();
  const drawMap = () => (turn = turn.then(drawMapNow));
  async function drawMapNow() {
    const pair = Number(pickPair.value), beyond = pickWhat.value === "beyond";
    const element = find("figure-map");
    let text = JSON.stringify(data.figure);
    if (dark.matches) {
      for (const [day, night] of Object.entries(data.on_dark)) text = text.replaceAll(day, night);
    }
    const { data: traces, layout } = JSON.parse(text);
    const z = [];
    let top = 1e-6;
    for (let from = 0; from < n; from++) {
      z.push([]);
      for (let to = 0; to < n; to++) {
        const value = at(pair, from, to);
        const shown = value === null ? null : beyond ? value - data.expected[pair][to] : value;
        if (shown !== null) top = Math.max(top, Math.abs(shown));
        z[from].push(shown);
      }
    }
    Object.assign(traces[0], {
      z, zmin: beyond ? -top : 0, zmax: top, colorscale: data.scales[pickWhat.value][dark.matches ? 1 : 0],
    });
    traces[0].colorbar.title.text = beyond ? "share beyond chance" : "share of tokens";
    const ink = dark.matches ? "#e7ebf0" : "#1a212b";
    layout.paper_bgcolor = "rgba(0,0,0,0)";
    layout.font = { ...layout.font, color: ink };
    layout.xaxis.title.text = `expert of layer ${data.layers[pair + 1]}`;
    layout.yaxis.title.text = `expert of layer ${data.layers[pair]}`;
    layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
    const x = Number(pickTo.value), y = Number(pickFrom.value);
    layout.shapes = [{ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5,
      line: { color: dark.matches ? "#ffd166" : "#111111", width: 3 } }];
    element.style.minWidth = `${Math.min(120 + 13 * n, 1000)}px`;
    layout.width = element.clientWidth;
    layout.dragmode = false;
    await Plotly.react(element, traces, layout, { displayModeBar: false });
    if (!element.dataset.listens) {
      element.dataset.listens = "true";
      element.on("plotly_click", (event) => {
        pickFrom.value = event.points[0].y;
        pickTo.value = event.points[0].x;
        choose();
      });
    }
  }

  function has(prompt, token, row, expert) {
    const first = ((prompt.start + token) * pack.layers.length + row) * pack.top_k;
    for (let slot = first; slot < first + pack.top_k; slot++) if (index[slot] === expert) return true;
    return false;
  }

  function drawTokens() {
    const pair = Number(pickPair.value), from = Number(pickFrom.value), to = Number(pickTo.value);
    const view = find("token-view");
    view.replaceChildren();
    const counted = pack.prompts.map((prompt) => {
      const values = prompt.tokens.map((_, t) =>
        (has(prompt, t, pair, from) ? (has(prompt, t, pair + 1, to) ? 1 : 0.3) : 0));
      return { prompt, values, went: values.filter((value) => value === 1).length };
    });
    counted.sort((a, b) => b.went - a.went);
    counted.slice(0, 4).forEach(({ prompt, values, went }, i) => {
      const part = document.createElement("div");
      part.className = "prompt";
      const title = document.createElement("h2");
      title.className = "small";
      title.textContent = `${prompt.id}: ${went} of ${values.length} tokens go this way`;
      const root = document.createElement("div");
      root.id = `tokens-${i}`;
      root.className = "paper";
      part.append(title, root);
      view.append(part);
      colourTokens(root, prompt.tokens, values, 1);
    });
    const value = at(pair, from, to);
    const name = `L${data.layers[pair]}E${from}`, next = `L${data.layers[pair + 1]}E${to}`;
    find("about").textContent = value === null ? `No token chose ${name}.`
      : `About ${percent(value)} of the ${said(data.count[pair][from])} tokens that chose ${name} chose ` +
        `${next} next; of all tokens ${percent(data.expected[pair][to])} did.`;
  }

  const choose = () => { drawTokens(); return drawMap(); };
  // The most used expert and the one that follows it most.
  function toLargest() {
    const pair = Number(pickPair.value);
    const from = data.count[pair].indexOf(Math.max(...data.count[pair]));
    let to = 0;
    for (let other = 1; other < n; other++) if (at(pair, from, other) > at(pair, from, to)) to = other;
    pickFrom.value = from;
    pickTo.value = to;
  }
  toLargest();
  await choose();
  pickPair.addEventListener("change", () => { toLargest(); choose(); });
  for (const select of [pickWhat, pickFrom, pickTo]) select.addEventListener("change", choose);
  dark.addEventListener("change", drawMap);
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawMap, 60);
  });
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
}
