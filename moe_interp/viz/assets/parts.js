// What every page with tokens shares: bytes, selectors, and one prompt's coloured tokens.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function option(select, value, text) {
  const item = document.createElement("option");
  item.value = value;
  item.textContent = text;
  select.append(item);
}

// The component draws when it likes; tokens without a value are marked once they stand there.
function markAbsent(root, absent, turns = 200) {
  if (!absent.length) return;
  const tokens = root.querySelectorAll(".colored-tokens span > span");
  if (tokens.length > absent[absent.length - 1]) {
    for (const i of absent) tokens[i].classList.add("absent");
  } else if (turns > 0) {
    requestAnimationFrame(() => markAbsent(root, absent, turns - 1));
  }
}

function colourTokens(root, tokens, values, bound) {
  CircuitsVis.render(root.id, CircuitsVis.ColoredTokens, {
    tokens, values: values.map((value) => value ?? 0), minValue: -bound, maxValue: bound,
    positiveColor: "#2166ac", negativeColor: "#b2182b",
  });
  const absent = [];
  values.forEach((value, i) => { if (value === null) absent.push(i); });
  markAbsent(root, absent);
}

// Says which tokens have the largest values, for those who cannot tell the colours.
function strongest(tokens, values, most = 3) {
  const order = values.map((value, i) => [value ?? 0, i]).filter(([value]) => value !== 0)
    .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, most);
  return order.map(([value, i]) =>
    `“${tokens[i].trim()}” ${String(Number(value.toPrecision(2))).replace("-", "\u2212")}`).join(", ");
}
