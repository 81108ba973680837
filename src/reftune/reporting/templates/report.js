// Everything below was written by models or data sets: it enters the page as text, never as HTML.
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function words(status) {
  return status.replaceAll("_", " ");
}

function judgement(chain) {
  const mark = element("span", chain.correct ? "right" : "wrong-answer", chain.correct ? "✓ right" : "✗ wrong");
  return [mark, element("span", "soft", chain.value === "" ? words(chain.status) : `answer ${chain.value}`)];
}

function folded(title, make, className = "") {
  const node = element("details", className, element("summary", "", ...[title].flat()));
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) node.append(...[make()].flat());
  });
  return node;
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.trim()), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function start() {
  const data = await unpack(document.getElementById("data").textContent);
  if (data.program) document.body.classList.add("program");
  if (data.questions.length) browseQuestions(data, document.querySelector("#questions form"));
  if (data.rollouts.length) browseSamples(data, document.getElementById("rollouts"));
  document.body.dataset.ready = "";
}

// A page of a run that goes on renews itself, but not under somebody who reads a question.
function renew() {
  const busy = document.querySelector("details.item[open]") || document.querySelector("[type=search]")?.value;
  if (!busy && !document.hidden) location.reload();
}

const reload = Number(document.body.dataset.reload);
if (reload) setInterval(renew, 1000 * reload);
requestAnimationFrame(() => setTimeout(start)); // what needs no data is painted first
