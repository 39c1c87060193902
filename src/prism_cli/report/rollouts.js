for (const box of document.querySelectorAll(".rollouts")) {
  const frames = [...box.querySelectorAll(".frame")];
  const turn = box.querySelector(".turn");
  const [back, on] = turn.querySelectorAll("button");
  const slider = turn.querySelector("input");
  const show = (place) => {
    slider.value = place;
    frames.forEach((frame, i) => (frame.hidden = i !== place));
    back.disabled = place === 0;
    on.disabled = place === frames.length - 1;
    turn.querySelector("output").textContent = `step ${frames[place].dataset.step}`;
    slider.setAttribute("aria-valuetext", `step ${frames[place].dataset.step}`);
  };
  slider.addEventListener("input", () => show(+slider.value));
  back.addEventListener("click", () => show(+slider.value - 1));
  on.addEventListener("click", () => show(+slider.value + 1));
  turn.hidden = frames.length < 2;
  show(frames.length - 1);
}
