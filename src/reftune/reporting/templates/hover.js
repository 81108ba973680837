// Values on hover: each figure carries its curves, and where its axes lie in the drawing.
const SVG = "http://www.w3.org/2000/svg";

function number(value, percent) {
  return percent ? `${(100 * value).toFixed(1)}%` : String(Number(value.toPrecision(4)));
}

function follow(figure) {
  const told = JSON.parse(figure.dataset.hover), svg = figure.querySelector("svg");
  const [left, top, width, height] = told.box;
  const scale = value => (told.log ? Math.log2(value) : value);
  const along = value => left + width * (scale(value) - scale(told.x[0])) / (scale(told.x[1]) - scale(told.x[0]));
  const down = value => top + height * (1 - (value - told.y[0]) / (told.y[1] - told.y[0]));
  const layer = svg.appendChild(document.createElementNS(SVG, "g"));
  const tip = figure.appendChild(document.createElement("p"));
  tip.className = "tip";
  tip.hidden = true;

  function draw(tag, attributes) {
    const node = layer.appendChild(document.createElementNS(SVG, tag));
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  }

  function nearest(xs, x) {
    return xs.reduce((best, value, i) => (Math.abs(along(value) - x) < Math.abs(along(xs[best]) - x) ? i : best), 0);
  }

  function hide() {
    layer.replaceChildren();
    tip.hidden = true;
  }

  function show(event) {
    hide();
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const x = (event.clientX - box.left) / box.width * view.width;
    const found = told.series.map(one => ({ ...one, i: nearest(one.x, x) }));
    const at = found.map(one => one.x[one.i]).reduce((a, b) => (Math.abs(along(b) - x) < Math.abs(along(a) - x) ? b : a));
    const here = found.filter(one => Math.abs(along(one.x[one.i]) - along(at)) < 1);
    draw("line", { class: "cursor", x1: along(at), x2: along(at), y1: top, y2: top + height });
    const lines = here.map((one, k) => {
      const value = one.y[one.i];
      draw("circle", { cx: along(at), cy: down(value), r: 3, style: `fill: ${one.colour}` });
      const shown = told.stacked && k ? value - here[k - 1].y[here[k - 1].i] : value;
      return `${one.name} ${number(shown, told.percent)}`;
    });
    tip.textContent = [`${told.label} ${number(at)}`, ...lines].join("\n");
    tip.hidden = false;
    const place = along(at) / view.width * box.width;
    tip.style.left = `${Math.max(0, Math.min(place + 12, figure.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${svg.offsetTop ?? box.top - figure.getBoundingClientRect().top}px`;
  }

  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, show);
  svg.addEventListener("pointerleave", hide);
}

document.querySelectorAll("figure[data-hover]").forEach(follow);
