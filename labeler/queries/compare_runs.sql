-- agreement of every two label runs: mean IoU per part, and where only one of them has a box
with pairs as (
    select a.label_run as first_run, b.label_run as second_run, a.dataset, a.part,
        a.status = 'ok' as in_first, b.status = 'ok' as in_second,
        greatest(0, least(a.x_max, b.x_max) - greatest(a.x_min, b.x_min))
            * greatest(0, least(a.y_max, b.y_max) - greatest(a.y_min, b.y_min)) as overlap,
        (a.x_max - a.x_min) * (a.y_max - a.y_min) as first_area,
        (b.x_max - b.x_min) * (b.y_max - b.y_min) as second_area
    from labels a
    join labels b using (dataset, image_id, part)
    where a.label_run < b.label_run
), scored as (
    select *, case when in_first and in_second then overlap / (first_area + second_area - overlap) end as iou from pairs
)
select first_run, second_run, dataset, part, count(*) as images, count(iou) as both_boxes,
    count(*) filter (in_first and not in_second) as only_first,
    count(*) filter (in_second and not in_first) as only_second,
    round(avg(iou), 4) as mean_iou,
    round(median(iou), 4) as median_iou,
    round(100.0 * count(*) filter (iou < 0.5) / nullif(count(iou), 0), 2) as below_half_percent
from scored
group by first_run, second_run, dataset, part
order by all
