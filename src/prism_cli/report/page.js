// Everything listens on the document, so that a page that follows a run may replace what is shown at any time.
const all = (selector, where = document) => [...where.querySelectorAll(selector)];

// Cards shown at first, and with each "Show more".
const PAGE = 12;

// What is chosen stands in the address, so that it outlives a reload and can be passed on.
const chosen = () => {
  const state = new URLSearchParams();
  for (const section of all("section.cards")) {
    for (const control of all(".filters [name]", section)) {
      if (control.value) state.set(`${section.id}.${control.name}`, control.value);
    }
    const slider = section.querySelector(".turn input");
    if (slider && slider.value !== slider.max) state.set(`${section.id}.step`, slider.value);
  }
  return state;
};
const remember = () => {
  const state = chosen().toString();
  history.replaceState(null, "", state ? `#${state}` : location.pathname + location.search);
};
const restore = (state) => {
  for (const [key, value] of state) {
    const [id, name] = key.split(".");
    const section = document.getElementById(id);
    const control = section && (name === "step" ? section.querySelector(".turn input") : section.querySelector(`.filters [name="${CSS.escape(name || "")}"]`));
    if (control) control.value = value;
  }
};

const filter = (section) => {
  const box = section.querySelector(".filters");
  const value = (name) => box.querySelector(`[name="${name}"]`)?.value || "";
  const [run, verdict, cause, source] = ["run", "verdict", "cause", "source"].map(value);
  const words = value("q").toLowerCase().split(/\s+/).filter(Boolean);
  const narrowed = Boolean(run || verdict || cause);
  const articles = all("article", section);
  const active = Boolean(narrowed || source || words.length);
  // Whole frames are turned one by one, so only what a filter finds can be too much at once.
  const most = active || !section.querySelector(".frame") ? +(section.dataset.most || PAGE) : Infinity;
  let left = 0;
  for (const article of articles) {
    const fitting = all(".side", article).filter(
      (side) =>
        side.dataset.run &&
        (!run || side.dataset.run === run) &&
        (!verdict || side.dataset.verdicts.split(" ").includes(verdict)) &&
        (!cause || side.dataset.cause === cause),
    );
    const text = words.length ? article.textContent.toLowerCase() : "";
    const shown = (!narrowed || fitting.length > 0) && (!source || article.dataset.source === source) && words.every((word) => text.includes(word));
    left += shown;
    article.hidden = !shown || left > most;
    for (const side of all(".side", article)) side.classList.toggle("fits", narrowed && fitting.includes(side));
  }
  const more = section.querySelector(".more");
  if (more) more.hidden = left <= most;
  box.querySelector("output").textContent = active ? `${left} of ${articles.length}` : `${articles.length}`;
  turn(section, active);
};

const turn = (section, active) => {
  const frames = all(".frame", section);
  if (!frames.length) return;
  const bar = section.querySelector(".turn");
  const slider = bar.querySelector("input");
  const place = +slider.value;
  const [back, on] = all("button", bar);
  // A filter looks through all steps at once.
  bar.hidden = frames.length < 2 || Boolean(active);
  frames.forEach((frame, i) => (frame.hidden = active ? !frame.querySelector("article:not([hidden])") : i !== place));
  section.classList.toggle("filtered", Boolean(active));
  back.disabled = place === 0;
  on.disabled = place === frames.length - 1;
  bar.querySelector("output").textContent = `step ${frames[place].dataset.step}`;
  slider.setAttribute("aria-valuetext", `step ${frames[place].dataset.step}`);
};

const show = () => {
  for (const section of all("section.cards")) {
    section.querySelector(".filters").hidden = false;
    filter(section);
  }
};

document.addEventListener("input", (event) => {
  const section = event.target.closest("section.cards");
  if (!section) return;
  delete section.dataset.most;
  filter(section);
  remember();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest(".turn button");
  if (button) {
    const slider = button.parentElement.querySelector("input");
    slider.value = +slider.value + (button.previousElementSibling ? 1 : -1);
    filter(button.closest("section.cards"));
    remember();
  }
  const more = event.target.closest(".more");
  if (more) {
    const section = more.closest("section.cards");
    section.dataset.most = +(section.dataset.most || PAGE) + PAGE;
    filter(section);
  }
  const link = event.target.closest("nav a");
  if (link) {
    event.preventDefault();
    document.querySelector(link.getAttribute("href"))?.scrollIntoView();
  }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && event.target.type === "search") {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input", { bubbles: true }));
    event.target.blur();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    const near = all(".filters input").find((input) => input.closest("section").getBoundingClientRect().bottom > 0);
    if (near) {
      event.preventDefault();
      near.focus();
    }
  }
  if (event.key === "j" || event.key === "k") {
    const cards = all("article:not([hidden])").filter((article) => article.offsetParent);
    const from = document.activeElement.closest("article");
    const below = cards.findIndex((card) => card.getBoundingClientRect().top > 8);
    const place = from ? cards.indexOf(from) + (event.key === "j" ? 1 : -1) : below < 0 ? cards.length - 1 : below;
    cards[Math.min(Math.max(place, 0), cards.length - 1)]?.focus();
    document.activeElement.closest("article")?.scrollIntoView({ block: "start" });
  }
});

// Values under the pointer.
document.addEventListener("pointermove", (event) => {
  const svg = event.target.closest(".chart svg");
  for (const tip of all(".tip")) if (!svg || tip.parentElement !== svg.parentElement) tip.remove();
  if (!svg) return;
  const plot = (svg.plot ??= JSON.parse(svg.dataset.plot));
  const box = svg.getBoundingClientRect();
  const [left, right] = [+svg.dataset.left, +svg.dataset.right];
  const across = ((event.clientX - box.left) / box.width - left) / (right - left);
  const step = plot.from + Math.min(1, Math.max(0, across)) * (plot.to - plot.from);
  const figure = svg.parentElement;
  const tip = figure.querySelector(".tip") || figure.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  const lines = plot.curves.map((curve) => {
    let best = 0;
    curve.x.forEach((x, i) => {
      if (Math.abs(x - step) < Math.abs(curve.x[best] - step)) best = i;
    });
    return [curve.x[best], `${curve.name} ${curve.y[best] ?? "–"}`];
  });
  tip.textContent = [`step ${lines[0][0]}`, ...lines.map(([, text]) => text)].join("\n");
  const edge = box.width - tip.offsetWidth;
  tip.style.left = `${Math.max(0, Math.min(edge, event.clientX - box.left + 14))}px`;
});

restore(new URLSearchParams(location.hash.slice(1)));
show();
