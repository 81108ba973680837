"use strict";
// Everything below was written by models or data sets: it enters the page as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 8;

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function judgement(chain) {
  const mark = element("span", chain.correct ? "right" : "wrong-answer", chain.correct ? "✓ right" : "✗ wrong");
  const failed = !chain.status.startsWith("ok");
  return [mark, element("span", "soft", failed ? chain.status.replaceAll("_", " ") : `answer ${chain.value}`)];
}

function goldLine(answer, id) {
  return element("p", "gold", "right answer ", element("b", "", answer), id === undefined ? "" : ` · ${id}`);
}

function questionCard(question) {
  const chains = data.models.filter(model => question.chains[model.key]).map(model => {
    const chain = question.chains[model.key];
    const head = element("p", "head", element("b", "", model.label), ...judgement(chain));
    return element("div", `chain model-${model.key}`, head, element("pre", "text", chain.text));
  });
  return element("article", "", element("p", "question", question.question),
    goldLine(question.answer, question.id), element("div", "chains", ...chains));
}

function rolloutCard(sample) {
  const head = element("p", "head", ...judgement(sample), element("span", "soft", `reward ${sample.reward}`));
  return element("div", "chain", head, element("p", "question", sample.question),
    element("pre", "text", sample.text), goldLine(sample.answer));
}

function browseQuestions(form) {
  const list = document.getElementById("question-list");
  const more = document.getElementById("more");
  const chainsOf = question => Object.values(question.chains);
  const statuses = new Set(data.questions.flatMap(question => chainsOf(question).map(chain => chain.status)));
  for (const status of [...statuses].sort()) form.status.append(new Option(status.replaceAll("_", " "), status));
  let found = [];

  function showMore() {
    const shown = list.childElementCount;
    list.append(...found.slice(shown, shown + PER_PAGE).map(questionCard));
    more.hidden = list.childElementCount >= found.length;
  }

  function update() {
    const kind = form.kind.value, status = form.status.value, words = form.words.value.toLowerCase();
    found = data.questions.filter(question => {
      const texts = [question.id, question.question, question.answer, ...chainsOf(question).map(chain => chain.text)];
      return (kind === "all" || question[kind])
        && (!status || chainsOf(question).some(chain => chain.status === status))
        && texts.join("\n").toLowerCase().includes(words);
    });
    document.getElementById("found").textContent = found.length === 1 ? "1 question" : `${found.length} questions`;
    list.replaceChildren();
    showMore();
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", showMore);
  update();
}

function browseRollouts(section) {
  const slider = section.querySelector("[type=range]");

  function chosenSteps() {
    const radio = section.querySelector("[type=radio]:checked");
    return data.rollouts[radio ? radio.value : 0].steps;
  }

  function update(event) {
    const steps = chosenSteps();
    slider.max = steps.length - 1;
    if (event?.target !== slider) slider.value = 0;
    const { step, samples } = steps[slider.value];
    section.querySelector("output").textContent = `step ${step}`;
    document.getElementById("rollout-list").replaceChildren(...samples.map(rolloutCard));
  }

  section.addEventListener("input", update);
  update();
}

if (data.program) document.body.classList.add("program");
if (data.questions.length) browseQuestions(document.querySelector(".filters"));
if (data.rollouts.length) browseRollouts(document.getElementById("rollouts"));
