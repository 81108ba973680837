// What the policy wrote during training, each token coloured by what the update made of it.
const MEASURES = {
  log_ratios: "log-ratio to the reference",
  advantages: "advantage",
  values: "value",
  logprobs: "log-probability",
};

function signed(value) {
  return `${value > 0 ? "+" : ""}${Number(value.toPrecision(3))}`;
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

// Of the sample's text what was given away, before its first token; a token that ends it is not in the text.
function opening(sample) {
  const whole = sample.tokens.join(""), body = sample.tokens.slice(0, -1).join("");
  const rest = [whole, body].find(text => sample.text.endsWith(text));
  return rest === undefined ? "" : sample.text.slice(0, sample.text.length - rest.length);
}

function tokenText(sample, measure, largest) {
  const tokens = sample.tokens.map((text, i) => {
    const token = element("span", "token", text), value = sample[measure]?.[i];
    if (value !== undefined) {
      const share = Math.round(70 * Math.min(1, Math.abs(value) / largest));
      token.style.background = `color-mix(in srgb, var(--${value < 0 ? "bad" : "good"}) ${share}%, transparent)`;
    }
    token.dataset.place = i;
    return token;
  });
  return [element("span", "soft", opening(sample)), ...tokens];
}

function sampleCard(sample, measure, largest) {
  const facts = [`reward ${sample.reward}`];
  if (sample.advantages?.length) facts.push(`advantage ${signed(mean(sample.advantages))}`);
  const head = element("p", "head", ...judgement(sample), element("span", "soft", facts.join(", ")));
  const text = element("pre", "text", ...(sample.tokens ? tokenText(sample, measure, largest) : [sample.text]));
  const told = element("p", "told soft");
  text.addEventListener("pointerover", event => {
    const place = event.target.dataset?.place;
    if (place === undefined) return;
    const numbers = Object.keys(MEASURES).filter(key => sample[key]).map(key => `${MEASURES[key]} ${signed(sample[key][place])}`);
    told.textContent = `${JSON.stringify(sample.tokens[place])}: ${numbers.join(", ")}`;
  });
  return element("div", "chain", head, text, told);
}

function groupCard(samples, measure, largest) {
  const right = samples.filter(sample => sample.correct).length, [{ question, answer }] = samples;
  const gold = element("p", "gold", "right answer ", element("b", "", answer), ` · ${right} of ${samples.length} right`);
  return element("article", "", element("p", "question", question), gold,
    element("div", "chains", ...samples.map(sample => sampleCard(sample, measure, largest))));
}

function grouped(samples) {
  const groups = [];
  for (const sample of samples) {
    if (groups.at(-1)?.[0].question === sample.question) groups.at(-1).push(sample);
    else groups.push([sample]);
  }
  return groups;
}

function browseSamples(data, section) {
  const slider = section.querySelector("[type=range]"), select = section.querySelector("select");

  function stage() {
    const radio = section.querySelector("[type=radio]:checked");
    return data.rollouts[radio ? radio.value : 0];
  }

  function offer(samples) {
    const known = Object.keys(MEASURES).filter(key => samples.some(sample => sample[key]));
    const chosen = known.includes(select.value) ? select.value : known[0];
    select.replaceChildren(...known.map(key => new Option(MEASURES[key], key)));
    if (chosen) select.value = chosen;
    select.parentElement.hidden = !known.length;
    return chosen;
  }

  function update(event) {
    const { steps, all } = stage();
    slider.max = steps.length - 1;
    if (event?.target !== slider && event?.target !== select) slider.value = 0;
    const { step, samples } = steps[slider.value];
    section.querySelector("output").textContent = `step ${step}`;
    section.querySelector(".note b").textContent = steps.length < all ? `${steps.length} of ${all} steps.` : "";
    const measure = offer(samples);
    const sizes = samples.flatMap(sample => sample[measure] ?? []).map(Math.abs).sort((a, b) => a - b);
    const largest = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
    section.querySelector(".scale").textContent = `full colour at ${signed(largest).slice(1)}`;
    document.getElementById("rollout-list").replaceChildren(
      ...grouped(samples).map(group => groupCard(group, measure, largest)));
  }

  section.addEventListener("input", update);
  update();
}
