// Draws the report's figures and links them: an expert picked anywhere is shown everywhere.
async function draw(data) {
  const find = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let onPaper = false;
  const isDark = () => dark.matches && !onPaper;
  const ink = () => (isDark() ? "#e7ebf0" : "#1a212b");
  const paper = () => (isDark() ? "#14181d" : "#ffffff");
  const narrow = () => innerWidth < 640 && !onPaper;

  function layoutFor(figure) {
    const layout = figure.layout;
    layout.paper_bgcolor = "rgba(0,0,0,0)";
    layout.font = { ...layout.font, color: ink(), size: narrow() ? 12 : 13 };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: paper(), font: { color: ink() } };
    layout.dragmode = false;
    if (narrow()) layout.margin = { ...layout.margin, l: 44, r: 6 };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) layout[key].fixedrange = true;
    }
    return layout;
  }

  // Plotly draws asynchronously: one drawing at a time, in the order they were asked for.
  let turn = Promise.resolve();
  const inTurn = (drawing) => (turn = turn.then(drawing));

  // Colours of the light page, replaced wherever they occur in a figure.
  function onPage(figure) {
    let text = JSON.stringify(figure);
    if (isDark()) {
      for (const [light, night] of Object.entries(data.on_dark)) text = text.replaceAll(light, night);
    }
    return JSON.parse(text);
  }

  async function plot(id, light, change = () => {}) {
    const element = find(`figure-${id}`);
    if (!element || !light) return null;
    const figure = onPage(light);
    const traces = figure.data;
    const layout = layoutFor(figure);
    change(traces, layout);
    // The width is ours to set: Plotly's own resizing knows nothing of paper.
    layout.width = element.clientWidth;
    await Plotly.react(element, traces, layout, { displayModeBar: false });
    return element;
  }

  const pack = data.tokens;
  const index = pack && (pack.index_bytes === 2
    ? new Uint16Array(bytes(pack.index).buffer) : bytes(pack.index));
  // Signed values take the steps −127 to 127; −128 is no value. Routing weights take 1 to 255.
  const weights = pack && (pack.signed
    ? new Int8Array(bytes(pack.weights).buffer) : bytes(pack.weights));
  const steps = pack && (pack.signed ? 127 : 255);
  let chosen = null;

  // ---- shares per layer -------------------------------------------------------------------
  const tabs = [...document.querySelectorAll('input[name="span"]')];
  const drawSharesNow = () => {
    const tab = tabs.find((input) => input.checked);
    return tab && plot("decomposition", data.decomposition[tab.value], (traces, layout) => {
      if (narrow()) for (const trace of traces) if (trace.type === "scatter") trace.marker.size = 7;
      if (narrow()) layout.legend.font = { size: 11 };
    });
  };
  const drawShares = () => inTurn(drawSharesNow);
  tabs.forEach((input) => input.addEventListener("change", drawShares));

  // ---- map of experts ---------------------------------------------------------------------
  const quantity = find("quantity");
  const place = (label) => /^L(\d+)E(\d+)$/.exec(label).slice(1).map(Number);

  const drawMap = () => inTurn(drawMapNow);
  async function drawMapNow() {
    if (!data.map || !quantity) return;
    if (!data.map.traces[quantity.value]) quantity.value = Object.keys(data.map.traces)[0];
    const shown = data.map.traces[quantity.value];
    const element = find("figure-map");
    const columns = data.map.figure.data[0].x.length;
    // Cells keep a size that a finger can hit; a small window scrolls the map sideways.
    element.style.minWidth = onPaper ? "0" : `${Math.min(60 + 13 * columns, 1000)}px`;
    await plot("map", data.map.figure, (traces, layout) => {
      const heat = traces[0];
      const scale = data.scales[shown.scale][isDark() ? 1 : 0];
      Object.assign(heat, shown, { colorscale: scale });
      delete heat.scale;
      layout.plot_bgcolor = isDark() ? "rgba(150,160,172,.10)" : "rgba(128,136,148,.12)";
      if (chosen) {
        const row = heat.customdata.findIndex((line) => line.includes(chosen));
        const column = place(chosen)[1];
        layout.shapes = [{
          type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5,
          line: { color: isDark() ? "#ffd166" : "#111111", width: 3 },
        }];
      }
    });
    if (!element.dataset.listens) {
      element.dataset.listens = "true";
      element.on("plotly_click", (event) => {
        const label = event.points[0].customdata;
        if (typeof label === "string") choose(label);
      });
    }
  }
  if (quantity) quantity.addEventListener("change", drawMap);

  // ---- figures without a section of their own: whatever names an expert can be clicked ----------
  async function drawFiguresNow() {
    for (const [name, figure] of Object.entries(data.figures ?? {})) {
      const element = await plot(name, figure, (traces, layout) => {
        if (narrow() && layout.legend) layout.legend.font = { size: 11 };
        const heat = traces.find((trace) => trace.type === "heatmap" && trace.customdata);
        const row = heat && chosen ? heat.customdata.findIndex((line) => line.includes(chosen)) : -1;
        if (row < 0) return;
        const column = heat.customdata[row].indexOf(chosen);
        layout.shapes = [...(layout.shapes ?? []), {
          type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5,
          line: { color: isDark() ? "#ffd166" : "#111111", width: 3 },
        }];
      });
      if (!element || element.dataset.listens || !pack) continue;
      element.dataset.listens = "true";
      element.on("plotly_click", (event) => {
        const label = event.points[0].customdata;
        if (/^L\d+E\d+$/.test(label) && pack.layers.includes(place(label)[0])) choose(label);
      });
    }
  }

  // ---- tokens -----------------------------------------------------------------------------
  const pickPrompt = find("s-prompt"), pickLayer = find("s-layer"), pickExpert = find("s-expert");

  function fillSelectors() {
    let start = 0;
    const groups = new Map();
    for (const prompt of pack.prompts) {
      prompt.start = start;
      start += prompt.tokens.length;
      const key = `${prompt.topic} ${prompt.pair}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(prompt);
    }
    const byTopic = new Map();
    [...groups.values()].forEach((members, i) => {
      const topic = members[0].topic || "no topic";
      if (!byTopic.has(topic)) {
        const group = document.createElement("optgroup");
        group.label = topic;
        byTopic.set(topic, group);
        pickPrompt.append(group);
      }
      option(byTopic.get(topic), i, `${members[0].id}: ${members[0].text}` +
        (members.length > 1 ? ` (and ${members.length - 1} matched)` : ""));
    });
    pack.layers.forEach((layer) => option(pickLayer, layer, layer));
    for (let expert = 0; expert < data.n_experts; expert++) option(pickExpert, expert, expert);
    find("token-scale").textContent = pack.scale.toPrecision(3);
    return [...groups.values()];
  }

  function weightsOf(prompt, layer, expert) {
    const row = pack.layers.indexOf(layer), k = pack.top_k, width = pack.layers.length * k;
    return prompt.tokens.map((_, t) => {
      const first = (prompt.start + t) * width + row * k;
      for (let slot = first; slot < first + k; slot++) {
        if (index[slot] !== expert) continue;
        if (pack.signed && weights[slot] === -128) return null;
        return Number((weights[slot] / steps * pack.scale).toPrecision(3));
      }
      return 0;
    });
  }

  function drawTokens() {
    if (!pack) return;
    const view = find("token-view");
    view.replaceChildren();
    const layer = Number(pickLayer.value), expert = Number(pickExpert.value);
    groups[pickPrompt.value].forEach((prompt, i) => {
      const part = document.createElement("div");
      part.className = "prompt";
      const title = document.createElement("h3");
      const badge = document.createElement("span");
      badge.className = `badge ${prompt.harm ? "harmful" : ""}`;
      badge.textContent = prompt.harm === null ? "no harm label" : prompt.harm ? "harmful" : "harmless";
      const values = weightsOf(prompt, layer, expert);
      const used = values.filter((value) => value !== null && value !== 0).length;
      const cut = prompt.cut ? ", cut short" : "";
      const most = strongest(prompt.tokens, values);
      title.append(badge, `${prompt.id} · L${layer}E${expert} ${pack.verb} ${used} of ` +
        `${values.length} tokens${cut}${most && `; most: ${most}`}`);
      const root = document.createElement("div");
      root.id = `tokens-${i}`;
      root.className = "paper";
      part.append(title, root);
      view.append(part);
      colourTokens(root, prompt.tokens, values, pack.scale);
    });
  }

  // ---- one expert, everywhere -------------------------------------------------------------
  function about(label) {
    const row = data.experts?.[label];
    if (!row || !find("about")) return;
    const said = (value) => (value === null || value === undefined ? "not measured"
      : String(Number(value.toPrecision(3))).replace("-", "\u2212"));
    find("about").textContent = `${label}: harmful minus harmless use ${said(row.effect)}, ` +
      `adjusted p ${said(row.p_adjusted)}, chosen by ${said(row.selection_frequency)} of tokens, ` +
      `attribution ${said(row.attribution)}, ablation effect ${said(row.ablation_effect)}` +
      `${row.selected ? ", selected" : ""}.`;
  }

  const uses = (group, layer, expert) => group.reduce((sum, prompt) =>
    sum + weightsOf(prompt, layer, expert).filter((value) => value).length, 0);

  // An expert that was clicked is shown at work: where the shown prompts do not use it, the
  // prompts that use it most take their place.
  function showAtWork(layer, expert) {
    const counts = groups.map((group) => uses(group, layer, expert));
    const most = Math.max(...counts);
    if (counts[pickPrompt.value] === 0 && most > 0) pickPrompt.value = counts.indexOf(most);
  }

  function select(label, elsewhere) {
    chosen = label;
    const [layer, expert] = place(label);
    if (pack) {
      pickLayer.value = layer;
      pickExpert.value = expert;
      if (elsewhere) showAtWork(layer, expert);
      drawTokens();
    }
    about(label);
    document.querySelectorAll("button.pick").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.expert === label)));
  }

  function choose(label, elsewhere = true) {
    select(label, elsewhere);
    inTurn(drawFiguresNow);
    return drawMap();
  }

  const groups = pack ? fillSelectors() : [];
  if (pack) {
    pickPrompt.addEventListener("change", drawTokens);
    for (const select of [pickLayer, pickExpert]) {
      select.addEventListener("change", () => choose(`L${pickLayer.value}E${pickExpert.value}`, false));
    }
  }
  document.querySelectorAll("button.pick").forEach((button) =>
    button.addEventListener("click", () => choose(button.dataset.expert)));

  const drawAll = () => inTurn(async () => {
    await drawFiguresNow();
    await plot("causal", data.causal, (traces, layout) => {
      if (!narrow()) return;
      layout.legend.font = { size: 11 };
      // The experts' names have no room here; the table below has them.
      for (const title of layout.annotations) title.text = title.text.replace(/ \(.*\)$/, "");
    });
    await drawSharesNow();
    await drawMapNow();
  });
  const first = document.querySelector("button.pick");
  const fallback = pack && pack.layers.length ? pack.start ?? `L${pack.layers[0]}E0` : null;
  const start = first ? first.dataset.expert : fallback;
  if (start) select(start, true);
  await drawAll();
  dark.addEventListener("change", drawAll);
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 60);
  });
  function print(now) {
    onPaper = now;
    document.body.classList.toggle("printing", now);
    drawAll();
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
}
