// What every page with tokens shares: bytes, selectors, and one prompt's coloured tokens.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function option(select, value, text) {
  const item = document.createElement("option");
  item.value = value;
  item.textContent = text;
  select.append(item);
}

// Black or white, whichever is easier to read on a colour (WCAG's contrast of luminances).
function inkOn(colour) {
  const part = (value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  };
  const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
  const light = 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  return 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? "on-dark" : "on-light";
}

// The component draws when it likes, and its letters may be too pale on their colour: tokens get
// readable ink, and those without a value a dotted line, once they stand there.
function finishTokens(root, count, absent, turns = 300) {
  // Another choice may have taken the tokens away meanwhile: they have no colour then.
  if (!root.isConnected) return;
  const tokens = root.querySelectorAll(".colored-tokens span > span");
  if (tokens.length < count) {
    if (turns > 0) requestAnimationFrame(() => finishTokens(root, count, absent, turns - 1));
    return;
  }
  tokens.forEach((token) => token.classList.add(inkOn(getComputedStyle(token).backgroundColor)));
  for (const i of absent) tokens[i].classList.add("absent");
}

function colourTokens(root, tokens, values, bound) {
  CircuitsVis.render(root.id, CircuitsVis.ColoredTokens, {
    tokens, values: values.map((value) => value ?? 0), minValue: -bound, maxValue: bound,
    positiveColor: "#2166ac", negativeColor: "#b2182b",
  });
  const absent = [];
  values.forEach((value, i) => { if (value === null) absent.push(i); });
  finishTokens(root, tokens.length, absent);
}

// Says which tokens have the largest values, for those who cannot tell the colours.
function strongest(tokens, values, most = 3) {
  const order = values.map((value, i) => [value ?? 0, i]).filter(([value]) => value !== 0)
    .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, most);
  return order.map(([value, i]) =>
    `“${tokens[i].trim()}” ${String(Number(value.toPrecision(2))).replace("-", "\u2212")}`).join(", ");
}
