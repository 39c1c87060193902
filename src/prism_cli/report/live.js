// Follows a run: asks whether its files have changed, and if so takes over the new page without leaving this one.
const follow = async () => {
  const line = document.querySelector(".live");
  try {
    const version = (await (await fetch("/version")).json()).version;
    if (version !== document.body.dataset.version) {
      const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
      const open = all("details[open]").map((one) => one.id);
      const state = chosen();
      const most = all("section.cards").map((section) => [section.id, section.dataset.most]);
      const typing = document.activeElement.name && [document.activeElement.closest("section")?.id, document.activeElement.name];
      const scroll = window.scrollY;
      for (const name of ["header", "main"]) document.querySelector(name).replaceWith(page.querySelector(name));
      document.body.dataset.version = page.body.dataset.version;
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      for (const [id, shown] of most) if (shown && document.getElementById(id)) document.getElementById(id).dataset.most = shown;
      restore(state);
      show();
      window.scrollTo(0, scroll);
      if (typing) document.getElementById(typing[0])?.querySelector(`[name="${CSS.escape(typing[1])}"]`)?.focus();
    } else if (line) line.textContent = line.dataset.shown;
  } catch {
    if (line) line.textContent = "prism view has ended; this is how the run stood.";
  }
  setTimeout(follow, 2000);
};
setTimeout(follow, 2000);
