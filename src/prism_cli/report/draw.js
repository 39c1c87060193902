for (const box of document.querySelectorAll(".plot")) {
  const draw = () => {
    if (box.dataset.drawn) return;
    box.dataset.drawn = "yes";
    const figure = JSON.parse(box.nextElementSibling.textContent);
    Plotly.newPlot(box, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  };
  const folded = box.closest("details");
  if (folded) folded.addEventListener("toggle", draw);
  else draw();
}
