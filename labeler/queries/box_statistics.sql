-- place, size and aspect of the boxes relative to their image: 5 %, 50 % and 95 % quantiles per part
select label_run, dataset, part, count(*) as boxes,
    [round(q, 3) for q in quantile_cont((rel_y_min + rel_y_max) / 2, [0.05, 0.5, 0.95])] as centre_y,
    [round(q, 3) for q in quantile_cont(rel_x_max - rel_x_min, [0.05, 0.5, 0.95])] as width_share,
    [round(q, 3) for q in quantile_cont(rel_y_max - rel_y_min, [0.05, 0.5, 0.95])] as height_share,
    [round(q, 3) for q in quantile_cont((x_max - x_min) / (y_max - y_min), [0.05, 0.5, 0.95])] as aspect,
    round(avg(score), 4) as mean_score
from parts
where status = 'ok'
group by label_run, dataset, part
order by label_run, dataset, median((rel_y_min + rel_y_max) / 2)
