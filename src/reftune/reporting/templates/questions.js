// The test questions: filtered, sorted, one of them linked by #q=ID.
const PER_PAGE = 40;

function count(chain, right) {
  return chain.votes.reduce((sum, vote) => sum + (right && !vote.correct ? 0 : vote.count), 0);
}

function agreement(question) {
  const shares = Object.values(question.chains).filter(chain => chain.votes)
    .map(chain => Math.max(...chain.votes.map(vote => vote.count)) / count(chain));
  return shares.reduce((a, b) => a + b, 0) / (shares.length || 1);
}

const ORDERS = {
  data: null,
  hard: question => Object.values(question.chains).filter(chain => chain.correct).length,
  divided: agreement,
  long: question => -Object.values(question.chains).reduce((sum, chain) => sum + chain.text.length, 0),
};

function marked(other, text) {
  if (other === undefined) return [text];
  return Diff.diffWordsWithSpace(other, text).filter(part => !part.removed)
    .map(part => (part.added ? element("mark", "", part.value) : part.value));
}

function voteLine(vote, total) {
  const bar = element("span", "votes-bar");
  bar.style.width = `${100 * vote.count / total}%`;
  const name = vote.value === "" ? words(vote.status) : vote.value;
  const head = [element("span", "votes-name", name), element("span", "votes-track", bar), String(vote.count),
    element("span", vote.correct ? "right" : "wrong-answer", vote.correct ? "✓" : "✗"),
    element("small", "", vote.chosen ? "chosen" : "")];
  if (!vote.texts.length) return element("p", "vote", ...head);
  const texts = () => vote.texts.flatMap(([text, times]) =>
    [element("pre", "text", text), ...(times > 1 ? [element("small", "", `${times} times`)] : [])]);
  return folded(head, texts, "vote");
}

function votesOf(chain) {
  if (!chain.votes) return [];
  const total = count(chain);
  const outcomes = Object.entries(chain.outcomes).map(([name, right]) =>
    element("span", right ? "right" : "wrong-answer", `${right ? "✓" : "✗"} ${name}`));
  return [element("p", "head outcomes", `${count(chain, true)} of ${total} samples right`, ...outcomes),
    ...chain.votes.map(vote => voteLine(vote, total))];
}

function prompts(models, question) {
  const texts = new Map();
  for (const model of models) {
    const text = question.chains[model.key]?.prompt;
    if (text !== undefined) texts.set(text, [...(texts.get(text) ?? []), model.label]);
  }
  const title = labels => (texts.size > 1 ? `Prompt of ${labels.join(", ")}` : "Prompt as the models got it");
  return [...texts].map(([text, labels]) => folded(title(labels), () => element("pre", "text", text)));
}

function questionCard(data, question, reference) {
  const models = data.models.filter(model => question.chains[model.key]);
  const chains = models.map(model => {
    const chain = question.chains[model.key];
    const last = models.findLast(one => one.key !== reference)?.key;
    const other = question.chains[model.key === reference ? last : reference]?.text;
    const text = element("pre", "text", ...marked(reference && other, chain.text));
    const head = element("p", "head", element("b", "", model.label), ...judgement(chain));
    return element("div", `chain model-${model.key}`, head, text, ...votesOf(chain));
  });
  const link = element("a", "", "link");
  link.href = `#q=${encodeURIComponent(question.id)}`;
  const gold = element("p", "gold", "right answer ", element("b", "", question.answer), ` · ${question.id} · `, link);
  return element("div", "card", element("p", "question", question.question), gold, ...prompts(models, question),
    element("div", "chains", ...chains));
}

function questionRow(data, question, form) {
  const marks = data.models.filter(model => question.chains[model.key]).map(model => {
    const chain = question.chains[model.key];
    const sampled = chain.votes ? ` ${count(chain, true)}/${count(chain)}` : "";
    const mark = element("span", `mark model-${model.key}`, element("i", "dot"),
      element("span", chain.correct ? "right" : "wrong-answer", chain.correct ? "✓" : "✗"), element("small", "", sampled));
    mark.title = `${model.label}: ${chain.correct ? "right" : "wrong"}, ${words(chain.status)}`;
    return mark;
  });
  const summary = [element("span", "snippet", question.question), element("span", "marks", ...marks)];
  const row = folded(summary, () => questionCard(data, question, form.reference.value), "item");
  row.dataset.id = question.id;
  row.addEventListener("toggle", () => {
    if (row.open) history.replaceState(null, "", `#q=${encodeURIComponent(question.id)}`);
  });
  return row;
}

function browseQuestions(data, form) {
  const list = document.getElementById("question-list"), more = document.getElementById("more");
  const chainsOf = question => Object.values(question.chains);
  const statuses = new Set(data.questions.flatMap(question => chainsOf(question).map(chain => chain.status)));
  for (const status of [...statuses].sort()) form.status.append(new Option(words(status), status));
  if (!chainsOf(data.questions[0]).some(chain => chain.votes)) form.querySelector("[value=divided]").remove();
  const texts = data.questions.map(question =>
    [question.id, question.question, question.answer, ...chainsOf(question).map(chain => chain.text)].join("\n").toLowerCase());
  let found = [];

  function showMore(until) {
    const shown = list.childElementCount;
    const end = Math.max(shown + PER_PAGE, until ?? 0);
    list.append(...found.slice(shown, end).map(question => questionRow(data, question, form)));
    more.hidden = list.childElementCount >= found.length;
  }

  function fits(question, index) {
    const asked = data.models.map(model => [question.chains[model.key], form.elements[`of-${model.key}`].value]);
    return (form.kind.value === "all" || question[form.kind.value])
      && asked.every(([chain, wanted]) => !wanted || (chain && chain.correct === (wanted === "right")))
      && (!form.status.value || chainsOf(question).some(chain => chain.status === form.status.value))
      && texts[index].includes(form.words.value.toLowerCase());
  }

  function update() {
    const order = ORDERS[form.order.value];
    found = data.questions.filter(fits);
    if (order) found = found.map(question => [order(question), question]).sort((a, b) => a[0] - b[0]).map(pair => pair[1]);
    document.getElementById("found").textContent = `${found.length} of ${data.questions.length} questions`;
    list.replaceChildren();
    showMore();
  }

  function openLinked() {
    const id = new URLSearchParams(location.hash.slice(1)).get("q");
    if (id === null || !data.questions.some(question => question.id === id)) return;
    if (!found.some(question => question.id === id)) {
      form.reset();
      update();
    }
    const place = found.findIndex(question => question.id === id);
    if (place >= list.childElementCount) showMore(place + 1);
    list.children[place].open = true;
    list.children[place].scrollIntoView();
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", () => showMore());
  addEventListener("hashchange", openLinked);
  update();
  openLinked();
}
